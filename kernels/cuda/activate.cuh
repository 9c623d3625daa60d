#pragma once
/// @file Activations at the device.
#include "kernels/activation.hpp"

namespace gptqd::cuda {

/// σ(x) = 1 / (1 + exp(−x)). Exact limits at both ends, NaN for NaN.
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// activation(x). NaN stays.
template <Activation activation>
__device__ float activate(float x) {
  if constexpr (activation == Activation::relu) {
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (activation == Activation::silu) {
    return x * sigmoid(x);
  } else if constexpr (activation == Activation::gelu_tanh) {
    constexpr float twice_root = 1.5957691216057308f;  // 2·√(2/π)
    return x * sigmoid(twice_root * x * (1.0f + 0.044715f * x * x));
  } else {
    return x;
  }
}

/// body.operator()<activation>() with the activation as a constant.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none:
      return body.template operator()<Activation::none>();
    case Activation::relu:
      return body.template operator()<Activation::relu>();
    case Activation::silu:
      return body.template operator()<Activation::silu>();
    case Activation::gelu_tanh:
      return body.template operator()<Activation::gelu_tanh>();
  }
}

}  // namespace gptqd::cuda
