#pragma once
/// @file Activations without branches and calls, so that loops around them vectorize.
#include <utility>

#include "kernels/activation.hpp"
#include "kernels/cpu/exponential.hpp"

namespace gptqd::cpu {

/// σ(x) = 1 / (1 + exp(−x)) by an exponential that cannot overflow. NaN for NaN.
[[gnu::always_inline]] inline float sigmoid(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float e = exp_nonpositive(-magnitude);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/// activation(x). NaN stays.
template <Activation activation>
[[gnu::always_inline]] inline float activate(float x) {
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

}  // namespace gptqd::cpu
