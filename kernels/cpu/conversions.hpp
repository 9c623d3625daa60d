#pragma once
/// @file Elements and views of the floating types inside the CPU backend's templates.
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/base/tensor_view.hpp"

namespace gptqd::cpu {

/// Exact: f32, f16, bf16 -> float; f64 -> double.
[[gnu::always_inline]] inline double widen(double value) { return value; }
[[gnu::always_inline]] inline float widen(float value) { return value; }
[[gnu::always_inline]] inline float widen(Half value) { return to_float(value); }
[[gnu::always_inline]] inline float widen(BFloat16 value) { return to_float(value); }

/// `value` as a float from which rounding to a half type gives what rounding `value` itself would: inexact results
/// have an odd last bit ("round to odd"), so they are never taken for a tie.
[[gnu::always_inline]] inline float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  const std::uint32_t truncated = std::abs(back) > std::abs(value) ? bits - 1u : bits;
  return back == value || value != value ? nearest : std::bit_cast<float>(truncated | 1u);
}

/// Rounded once, to nearest even.
template <class To, class From>
[[gnu::always_inline]] inline To convert_element(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_floating_point_v<To>) {
    return static_cast<To>(widen(value));
  } else {
    float rounded = 0.0f;
    if constexpr (std::is_same_v<From, double>) {
      rounded = round_to_odd(value);
    } else {
      rounded = widen(value);
    }
    if constexpr (std::is_same_v<To, Half>) {
      return to_half(rounded);
    } else {
      return to_bfloat16(rounded);
    }
  }
}

/// body(typed view) for the element type that `view` has. @pre is_floating(view.dtype)
template <class View, class Body>
void visit_floating(const View& view, const Body& body) {
  switch (view.dtype) {
    case DType::f64:
      return body(view.template as<double>());
    case DType::f32:
      return body(view.template as<float>());
    case DType::f16:
      return body(view.template as<Half>());
    case DType::bf16:
      return body(view.template as<BFloat16>());
    default:
      require(false, "expected a tensor of a floating type");
  }
}

}  // namespace gptqd::cpu
