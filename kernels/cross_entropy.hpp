#pragma once
/// @file Negative log-likelihood of given tokens under a linear head, without keeping all logits.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// nll[t] = log Σ_v exp(x[t]·head[v]) − x[t]·head[target[t]]; 0 where target[t] < 0. fp32 logits, fp64 sums.
struct CrossEntropyArgs {
  ConstAnyView<2> x;                         ///< [tokens, d], compute dtype
  ConstAnyView<2> head;                      ///< [vocabulary, d], compute dtype
  ConstTensorView<std::int32_t, 1> targets;  ///< [tokens]
  TensorView<double, 1> nll;                 ///< [tokens]
};
void validate(const CrossEntropyArgs& args);

}  // namespace gptqd
