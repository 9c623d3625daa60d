#pragma once
/// @file Random matrices, the same on every machine.
#include <cstdint>
#include <random>

#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

/// Normally distributed elements: sums of twelve uniform numbers.
inline Matrix<double> random_normal(std::int64_t rows, std::int64_t cols, std::uint32_t seed, double deviation = 1) {
  std::mt19937 generator(seed);
  Matrix<double> result(rows, cols);
  for (auto& value : result.data) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) {
      sum += static_cast<double>(generator()) / 4294967296.0;
    }
    value = deviation * sum;
  }
  return result;
}

/// XᵀX of correlated random X [tokens, n], with `damping` times its mean diagonal added to the diagonal.
inline Matrix<double> random_hessian(std::int64_t n, std::int64_t tokens, std::uint32_t seed, double damping = 0.01) {
  auto x = random_normal(tokens, n, seed);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 1; c < n; ++c) {
      x(t, c) += 0.6 * x(t, c - 1);
    }
  }
  auto h = product(transposed(x), x);
  double mean = 0;
  for (std::int64_t c = 0; c < n; ++c) {
    mean += h(c, c) / static_cast<double>(n);
  }
  for (std::int64_t c = 0; c < n; ++c) {
    h(c, c) += damping * mean;
  }
  return h;
}

}  // namespace gptqd::reference
