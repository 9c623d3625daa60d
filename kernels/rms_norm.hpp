#pragma once
/// @file Root-mean-square normalization (arXiv:1910.07467).
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y = x / sqrt(mean(x²) + epsilon) · weight over each run of d consecutive columns: a whole row where x is d wide, a
/// head where it holds several side by side (Qwen3's norms of q and k). fp32 inside; the quotient is rounded to the
/// dtype of y before it is multiplied, as the published models do.
struct RmsNormArgs {
  ConstAnyView<2> x;                 ///< [tokens, runs · d], compute dtype
  ConstTensorView<float, 1> weight;  ///< [d]
  float epsilon = 1e-6f;
  AnyView<2> y;  ///< [tokens, runs · d]; may be x itself
};
void validate(const RmsNormArgs& args);

}  // namespace gptqd
