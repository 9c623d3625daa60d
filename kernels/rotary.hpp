#pragma once
/// @file Rotary position embedding (RoPE, arXiv:2104.09864), in the half-split arrangement of Hugging Face's files.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// Turns the first 2n columns of each head in place, n = cos.cols(); columns behind them stay (partial rotary):
///
///   (x[i], x[i + n]) <- (x[i]·cos[p, i] − x[i + n]·sin[p, i],  x[i + n]·cos[p, i] + x[i]·sin[p, i]),  i < n
///
/// p is the row's position in its sample. fp32 inside, rounded once.
struct RotaryArgs {
  AnyView<2> x;                   ///< [samples · tokens_per_sample, heads · head_dim], compute dtype
  ConstTensorView<float, 2> cos;  ///< [at least tokens_per_sample, n], 2n <= head_dim
  ConstTensorView<float, 2> sin;  ///< same shape
  std::int64_t tokens_per_sample = 0;
  std::int64_t head_dim = 0;
};
void validate(const RotaryArgs& args);

}  // namespace gptqd
