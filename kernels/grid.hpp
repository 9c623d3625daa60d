#pragma once
/// @file Quantization grids: scale and zero of each group of weights (docs/numerics.md, "The quantizer").
///
/// q = clamp(rint(w/s) + z, 0, 2^bits − 1), rint half to even, IEEE division; ŵ = s·(q − z).
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// How a grid's range is chosen.
enum class Clip : std::uint8_t {
  none,     ///< the group's range
  mse,      ///< p·range, p = 1, 0.99, ..., 0.21, the first that minimizes Σ|ŵ − w|^2.4
  hessian,  ///< the same candidates, the first that minimizes δ H_gg δᵀ
};

/// The form in which scales are stored, and to which they are rounded before any weight is quantized.
enum class ScaleFormat : std::uint8_t {
  f16,           ///< binary16; at least 2^-24, at most 65504
  bf16_and_f16,  ///< 8 significant bits in binary16's normal range: exact in both; at least 2^-14
};

/// What defines a grid besides the weights.
struct GridSpec {
  int bits = 4;  ///< 2, 3, 4 or 8
  bool symmetric = true;
  Clip clip = Clip::mse;
  ScaleFormat scale_format = ScaleFormat::f16;
  /// The published code's symmetric grid of a group without negative weights: s = max|w|/(2^bits − 1).
  bool published_symmetric = false;
};

/// Finds the grid of each row's groups. Ranges, scales and zeros are computed in the type of the weights (T below).
///
/// lo = min(w, 0), hi = max(w, 0) over the group; symmetric: hi = max|w|, lo = −hi (published_symmetric: lo = 0 without
/// a negative weight); a group of zeros: lo = −1, hi = 1. Then s_T = (p·hi − p·lo)/(2^bits − 1) with p = T(1 − i/100),
/// z = rint(−p·lo/s_T), symmetric z = 2^(bits−1), and scale = s_T rounded to f32 and then to its stored form.
/// Clip::none: i = 0. Else i = 0 ... 79, and of these 80 grids, scales as stored, the first with the smallest error.
struct FindGridsArgs {
  GridSpec spec;
  ConstAnyView<2> weights;                  ///< [rows, n], f32 or f64
  ConstTensorView<std::int32_t, 1> group;   ///< [n], the group of each column of `weights`
  ConstTensorView<std::int32_t, 1> member;  ///< [n], position inside the group; [0]: ascending columns
  TensorView<float, 2> scales;              ///< [rows, groups], exactly representable in the stored form
  TensorView<std::uint8_t, 2> zeros;        ///< [rows, groups]
  ConstTensorView<float, 3> blocks{};       ///< [groups, size, size], only with Clip::hessian, else empty
};
void validate(const FindGridsArgs& args);

/// codes = Q(W) on given grids, delta = Q(W) − W: round to nearest.
struct RoundToGridsArgs {
  int bits = 4;
  ConstAnyView<2> weights;                 ///< [rows, n], f32 or f64
  ConstTensorView<std::int32_t, 1> group;  ///< [n]
  ConstTensorView<float, 2> scales;        ///< [rows, groups]
  ConstTensorView<std::uint8_t, 2> zeros;  ///< [rows, groups]
  TensorView<std::uint8_t, 2> codes;       ///< [rows, n]
  AnyView<2> delta;                        ///< [rows, n], dtype of weights
};
void validate(const RoundToGridsArgs& args);

}  // namespace gptqd
