#pragma once
/// @file The column-block solve of GPTQ, left-looking, one panel of the factor at a time (docs/numerics.md).
#include <vector>

#include "kernels/grid.hpp"

namespace gptqd {

/// Quantizes the columns [first, first + w) of some rows, given those behind them.
///
/// All in factor order: column a is quantized before column a − 1, H + D = L Lᵀ, L lower. For each block G of `block`
/// columns, from the panel's last to its first (blocks are aligned at n, the side where the work starts):
///   T = delta[:, > G] · L[> G, G];  R = L[G, G]⁻¹;  W̃ = W[:, G] − T·R;
///   columns a of G descending: q = Q(W̃_a), e = (W̃_a − q)/R_aa, W̃_b −= e·R_ab for b < a in G; delta_a = q − W_a.
/// row_loss += Σ e² (the damped loss ‖delta·L‖² of the columns of this panel).
///
/// With dynamic grids a group's scale and zero are found from W̃ over the whole group when its first column (the highest
/// a) is reached, and written; a block must hold whole groups (else the stream throws Error internal). Otherwise scales
/// and zeros are given. Codes and delta are computed in the type of the factor.
/// Rows are independent: a call on rows that start at a multiple of row_tile gives the bits of the call on all rows.
struct SolvePanelArgs {
  GridSpec grid;
  bool dynamic_grids = false;
  std::int64_t block = 128;  ///< columns a block; panels are made of whole blocks but for the lowest columns
  std::int64_t first = 0;    ///< the panel's first column
  ConstAnyView<2> factor;  ///< [n − first, w]: L's rows [first, n), columns [first, first + w); zero above the diagonal
  ConstAnyView<2> weights;                  ///< [rows, n], dtype of factor
  AnyView<2> delta;                         ///< [rows, n]: in: columns >= first + w; out: the panel's
  TensorView<std::uint8_t, 2> codes;        ///< [rows, n]: out: the panel's
  ConstTensorView<std::int32_t, 1> group;   ///< [n]
  ConstTensorView<std::int32_t, 1> member;  ///< [n], position inside the group
  TensorView<float, 2> scales;              ///< [rows, groups]
  TensorView<std::uint8_t, 2> zeros;        ///< [rows, groups]
  ConstTensorView<float, 3> blocks{};       ///< as in FindGridsArgs, only for dynamic grids with Clip::hessian
  TensorView<double, 1> row_loss;           ///< [rows], added to
  std::int64_t row_tile = 64;  ///< rows of one tile: fixed, so that bits do not depend on how rows are split
};
void validate(const SolvePanelArgs& args);

/// Rows whose norms are wanted.
struct NormRows {
  ConstAnyView<2> delta;        ///< [rows, n], dtype of factor
  TensorView<double, 1> norms;  ///< [rows], added to
};

/// norms[r] += ‖(row r of `delta`) · L[:, panel]‖² − Σ_a extra[a]·delta[r, a]² over the panel's columns a:
/// summed over all panels this is delta·H·deltaᵀ, row by row, H without what damping added (extra, the diagonal D).
struct WeightedNormsArgs {
  ConstAnyView<2> factor;  ///< [n − first, w], zero above the diagonal
  std::int64_t first = 0;
  std::vector<NormRows> rows;        ///< several matrices at once, which share what preparing the factor costs
  ConstTensorView<double, 1> extra;  ///< [n], factor order
  std::int64_t row_tile = 64;
};
void validate(const WeightedNormsArgs& args);

}  // namespace gptqd
