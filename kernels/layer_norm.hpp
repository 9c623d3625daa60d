#pragma once
/// @file Layer normalization.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y = (x − mean(x)) / sqrt(var(x) + epsilon) · weight + bias over the last dimension; biased variance, fp32 inside.
struct LayerNormArgs {
  ConstAnyView<2> x;                 ///< [tokens, d], compute dtype
  ConstTensorView<float, 1> weight;  ///< [d]
  ConstTensorView<float, 1> bias;    ///< [d]
  float epsilon = 1e-5f;
  AnyView<2> y;  ///< [tokens, d]; may be x itself
};
void validate(const LayerNormArgs& args);

}  // namespace gptqd
