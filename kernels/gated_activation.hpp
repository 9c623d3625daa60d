#pragma once
/// @file The product in the middle of a gated MLP (GLU, arXiv:2002.05202).
#include "kernels/activation.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y = activation(gate) · up, element by element, in fp32, rounded once.
struct GatedActivationArgs {
  ConstAnyView<2> gate;  ///< [tokens, d], compute dtype
  ConstAnyView<2> up;    ///< [tokens, d]
  AnyView<2> y;          ///< [tokens, d]; must not overlap gate and up
  Activation activation = Activation::silu;
};
void validate(const GatedActivationArgs& args);

}  // namespace gptqd
