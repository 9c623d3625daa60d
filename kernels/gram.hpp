#pragma once
/// @file The Hessian's panels: H = XᵀX, lower part, by column panels (GPTQ, arXiv:2210.17323, section 3).
///
/// Factor order: n columns in the reverse of the order in which they are quantized (docs/numerics.md). Panel k holds
/// the columns [first, first + w) and the rows [first, n): only the lower part exists.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// sums[c] (+)= Σ_t x[t, c]², in fp64, in an order that depends on the number of tokens alone.
struct ColumnSquareSumsArgs {
  ConstAnyView<2> x;           ///< [tokens, n], compute dtype
  TensorView<double, 1> sums;  ///< [n]
  bool accumulate = false;
};
void validate(const ColumnSquareSumsArgs& args);

/// panel[r, c] (+)= Σ_t x[t, r] · x[t, c] for c in [0, w), r in [c, m): x holds the panel's rows as its columns.
///
/// The strictly upper part of the first w rows is unspecified. Products accumulate in fp32 over at most 4,096 tokens,
/// then are added in IEEE arithmetic: split longer inputs at fixed places, in order.
struct GramPanelArgs {
  ConstAnyView<2> x;  ///< [tokens, m], compute dtype, columns [first, n) in factor order
  AnyView<2> panel;   ///< [m, w], f32 (f64 where x is f64), w <= m
  bool accumulate = false;
};
void validate(const GramPanelArgs& args);

/// diagonal[c] = panel[c, c].
struct GetDiagonalArgs {
  ConstAnyView<2> panel;           ///< [m, w]
  TensorView<double, 1> diagonal;  ///< [w]
};
void validate(const GetDiagonalArgs& args);

/// panel[c, c] = diagonal[c].
struct SetDiagonalArgs {
  ConstTensorView<double, 1> diagonal;  ///< [w]
  AnyView<2> panel;                     ///< [m, w]
};
void validate(const SetDiagonalArgs& args);

/// Copies the entries of a panel that lie inside a group's own block: for r, c in the panel with group[first + r] ==
/// group[first + c] = g, and member[.] the position inside the group:
/// blocks[g, member[first + r], member[first + c]] = the same transposed = panel[r, c], r >= c.
/// What no panel of this call holds stays untouched, so zeroed blocks of several ranks can be added.
struct GatherGroupBlocksArgs {
  ConstAnyView<2> panel;                    ///< [n − first, w]
  std::int64_t first = 0;                   ///< first column of the panel, factor order
  ConstTensorView<std::int32_t, 1> group;   ///< [n], factor order
  ConstTensorView<std::int32_t, 1> member;  ///< [n], factor order
  TensorView<float, 3> blocks;              ///< [groups, group_size, group_size]
};
void validate(const GatherGroupBlocksArgs& args);

}  // namespace gptqd
