#pragma once
/// @file Sums in a fixed order that vectorizes: sixteen lanes, then a tree over the lanes.
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace gptqd::cpu {

inline constexpr std::int64_t lanes = 16;

/// Σ term(i) for i in [0, n): lane l adds the terms i ≡ l (mod 16) in ascending order.
template <class Term>
[[gnu::always_inline]] inline auto lane_sum(std::int64_t n, const Term& term) {
  using Sum = std::decay_t<decltype(term(0))>;
  Sum sums[lanes] = {};
  const std::int64_t whole = n / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) {
      sums[l] += term(i + l);
    }
  }
  for (std::int64_t i = whole; i < n; ++i) {
    sums[i - whole] += term(i);
  }
  for (std::int64_t width = lanes / 2; width > 0; width /= 2) {
    for (std::int64_t l = 0; l < width; ++l) {
      sums[l] += sums[l + width];
    }
  }
  return sums[0];
}

/// max(lowest, x[0], ..., x[n−1]); NaN among x is passed over.
template <class T>
[[gnu::always_inline]] inline T lane_max(const T* x, std::int64_t n, T lowest) {
  T highest[lanes];
  for (std::int64_t l = 0; l < lanes; ++l) {
    highest[l] = lowest;
  }
  const std::int64_t whole = n / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) {
      highest[l] = x[i + l] > highest[l] ? x[i + l] : highest[l];
    }
  }
  for (std::int64_t i = whole; i < n; ++i) {
    highest[i - whole] = x[i] > highest[i - whole] ? x[i] : highest[i - whole];
  }
  T result = highest[0];
  for (std::int64_t l = 1; l < lanes; ++l) {
    result = highest[l] > result ? highest[l] : result;
  }
  return result;
}

}  // namespace gptqd::cpu
