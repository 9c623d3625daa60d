#pragma once
/// @file Optimal Brain Quantization (arXiv:2208.11580): greedy, exact, one weight at a time. A baseline for small
/// layers.
#include "kernels/grid.hpp"

namespace gptqd {

/// Most columns that obq() takes: each row costs n³ operations and n² numbers of memory a thread.
inline constexpr std::int64_t max_obq_columns = 1024;

/// For each row: until no column is left, quantize the column with the smallest (Q(w_a) − w_a)²/[H⁻¹]_aa, move the
/// others by −(w_a − Q(w_a))/[H⁻¹]_aa · H⁻¹_a,:, and remove a from H⁻¹. Cost O(rows · n³), fp64. Ties: lowest a.
struct ObqArgs {
  int bits = 4;
  ConstTensorView<double, 2> inverse;  ///< [n, n], H⁻¹ of the damped H, symmetric, both triangles; n <= max_obq_columns
  ConstAnyView<2> weights;             ///< [rows, n], f32 or f64
  ConstTensorView<std::int32_t, 1> group;  ///< [n]
  ConstTensorView<float, 2> scales;        ///< [rows, groups]
  ConstTensorView<std::uint8_t, 2> zeros;  ///< [rows, groups]
  TensorView<std::uint8_t, 2> codes;       ///< [rows, n]
  AnyView<2> delta;                        ///< [rows, n], Q − W, dtype of weights
};
void validate(const ObqArgs& args);

}  // namespace gptqd
