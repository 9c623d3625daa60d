#pragma once
/// @file What a layer's record says of its rows besides their losses.
#include <optional>

#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// For each row r of the quantization errors delta = Q − W and of the scales:
///   damping_share[r] = Σ_a extra[a]·delta[r, a]², what damping added to delta·H·deltaᵀ; 0 without extra
///   saturated[r]     = codes at an end of the range that lie further than half a step from their weight
///   non_finite[r]    = values of delta that are infinite or not numbers
///   min_scale[r], max_scale[r] = the least and the largest of scales[r, ·]
struct RowStatisticsArgs {
  int bits = 4;
  ConstAnyView<2> delta;                              ///< [rows, n], f32 or f64, factor order
  ConstTensorView<std::uint8_t, 2> codes;             ///< [rows, n]
  ConstTensorView<std::int32_t, 1> group;             ///< [n], factor order
  ConstTensorView<float, 2> scales;                   ///< [rows, groups], at least one group
  std::optional<ConstTensorView<double, 1>> extra{};  ///< [n], factor order
  TensorView<double, 1> damping_share;                ///< [rows]
  TensorView<std::int32_t, 1> saturated;              ///< [rows]
  TensorView<std::int32_t, 1> non_finite;             ///< [rows]
  TensorView<float, 1> min_scale;                     ///< [rows]
  TensorView<float, 1> max_scale;                     ///< [rows]
};
void validate(const RowStatisticsArgs& args);

}  // namespace gptqd
