#pragma once
/// @file y = x Wᵀ + b, the one GEMM of the forward pass.
#include <optional>

#include "kernels/activation.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y <- activation(x weightᵀ + bias), or y <- y + (x weightᵀ + bias) with accumulate.
///
/// Accumulates in fp32. The bits of a row of y do not depend on the number of threads.
struct LinearArgs {
  ConstAnyView<2> x;                              ///< [tokens, in], compute dtype
  ConstAnyView<2> weight;                         ///< [out, in], compute dtype
  std::optional<ConstTensorView<float, 1>> bias;  ///< [out]
  AnyView<2> y;                                   ///< [tokens, out], compute dtype; must not overlap x
  Activation activation = Activation::none;       ///< not together with accumulate
  bool accumulate = false;
};
void validate(const LinearArgs& args);

}  // namespace gptqd
