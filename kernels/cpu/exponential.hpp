#pragma once
/// @file exp in float, without branches and calls, so that loops around it vectorize.
#include <bit>
#include <cstdint>

namespace gptqd::cpu {

/// exp(x) for x <= 0, within 1 ulp; 0 below −87 (where the exact value is less than 2^-125); NaN for NaN.
///
/// x = n·ln 2 + r, |r| <= ln 2 / 2; exp(r) by a polynomial of degree 7 (Cephes, expf), times 2^n by its exponent bits.
[[gnu::always_inline]] inline float exp_nonpositive(float x) {
  constexpr float lowest = -87.0f;
  constexpr float log2_e = 1.44269504088896341f;
  constexpr float ln2_high = 0.693359375f;
  constexpr float ln2_low = -2.12194440e-4f;
  constexpr float shift = 0x1.8p23f;  // leaves no bits for a fraction: addition rounds to an integer
  const float limited = x < lowest ? lowest : x;
  const float shifted = limited * log2_e + shift;
  const float n = shifted - shift;
  const float r = limited - n * ln2_high - n * ln2_low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(shift) + 127u;
  const float result = p * std::bit_cast<float>(exponent << 23);
  return x < lowest ? 0.0f : result;
}

}  // namespace gptqd::cpu
