#pragma once
/// @file The algorithm of the paper as its authors wrote it down (arXiv:2210.17323, section 3), naive, fp64:
/// damp, invert H, take the upper Cholesky factor of the inverse, quantize column by column, update all columns behind.
#include <cstdint>
#include <vector>

#include "kernels/grid.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

struct GptqOptions {
  GridSpec grid;
  std::int64_t group_size = -1;  ///< −1: one group a row
  bool act_order = false;
  /// Grids from the weights in original order before anything is quantized. Else a group is a run of columns in the
  /// order of quantization, and its grid comes from the updated weights when its first column is reached.
  bool static_groups = false;
  double damping = 0.01;  ///< share of the mean of diag(H), after dead columns (H_ii = 0) have become 1
};

/// All in original column order, but for dynamic groups with act_order, which count in the order of quantization.
struct GptqResult {
  Matrix<std::uint8_t> codes;
  Matrix<float> scales;             ///< [rows, groups]
  Matrix<std::uint8_t> zeros;       ///< [rows, groups]
  std::vector<std::int32_t> order;  ///< order[i] = the column quantized as number i
  std::vector<std::int32_t> g_idx;  ///< group of each original column
  Matrix<double> damped_hessian;    ///< original order
  Matrix<double> weights;           ///< as quantized: dead columns are zero
};

/// @param hessian  XᵀX, undamped
GptqResult gptq(const Matrix<double>& weights, const Matrix<double>& hessian, const GptqOptions& options);

/// Columns by descending diagonal, ties by index.
std::vector<std::int32_t> descending_diagonal(const Matrix<double>& h);

/// tr(Δ·H·Δᵀ), Δ = Ŵ − W, for codes in the order of W's columns.
double layer_loss(const Matrix<double>& weights, const Matrix<double>& hessian, const Matrix<std::uint8_t>& codes,
                  const Matrix<float>& scales, const Matrix<std::uint8_t>& zeros,
                  const std::vector<std::int32_t>& g_idx);

}  // namespace gptqd::reference
