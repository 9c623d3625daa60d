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
  f16,            ///< binary16; at least 2^-24, at most 65504
  bf16_and_f16,   ///< 8 significant bits in binary16's normal range: exact in both; at least 2^-14
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

/// Asymmetric: lo = min(w, 0), hi = max(w, 0), s32 = (hi − lo)/(2^bits − 1), z = rint(−lo/s32), s = s32 rounded to its
/// stored form. Symmetric: s32 = 2·max|w|/(2^bits − 1), z = 2^(bits−1). A group of zeros: as the range [−1, 1] (asymmetric
/// and symmetric alike), scale as stored. With clip, lo and hi are multiplied by p first.
struct FindGridsArgs {
  GridSpec spec;
  ConstAnyView<2> weights;                ///< [rows, n], f32 or f64
  ConstTensorView<std::int32_t, 1> group;  ///< [n], the group of each column of `weights`
  ConstTensorView<std::int32_t, 1> member; ///< [n], its position inside the group (used with blocks)
  TensorView<float, 2> scales;            ///< [rows, groups], exactly representable in the stored form
  TensorView<std::uint8_t, 2> zeros;      ///< [rows, groups]
  ConstTensorView<float, 3> blocks{};      ///< [groups, size, size], only with Clip::hessian, else empty
};
void validate(const FindGridsArgs& args);

/// codes = Q(W) on given grids, delta = Q(W) − W: round to nearest.
struct RoundToGridsArgs {
  int bits = 4;
  ConstAnyView<2> weights;                     ///< [rows, n], f32 or f64
  ConstTensorView<std::int32_t, 1> group;      ///< [n]
  ConstTensorView<float, 2> scales;            ///< [rows, groups]
  ConstTensorView<std::uint8_t, 2> zeros;      ///< [rows, groups]
  TensorView<std::uint8_t, 2> codes;           ///< [rows, n]
  AnyView<2> delta;                            ///< [rows, n], dtype of weights
};
void validate(const RoundToGridsArgs& args);

}  // namespace gptqd
