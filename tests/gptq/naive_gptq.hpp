#pragma once
/// @file GPTQ as the paper writes it (arXiv:2210.17323, algorithm 1): inverse of H, its upper Cholesky factor, one
/// column at a time, in f64. Grids without clipping. Nothing here is shared with the product.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/base/dtype.hpp"

namespace gptqd::gptq::test {

struct NaiveSettings {
  int bits = 4;
  std::int64_t group = 128;
  bool symmetric = true;
  bool descending = false;     // order of columns
  bool static_groups = false;  // grids from W, groups of original columns
  double damping = 0.01;
};

struct NaiveResult {
  std::vector<std::uint8_t> codes;  // [rows, cols], original order
  std::vector<float> scales;        // [rows, groups]
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> g_idx;
};

using Matrix = std::vector<std::vector<double>>;

/// Gauss-Jordan on a positive definite matrix.
inline Matrix naive_inverse(Matrix a) {
  const std::size_t n = a.size();
  Matrix b(n, std::vector<double>(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) {
    b[i][i] = 1;
  }
  for (std::size_t p = 0; p < n; ++p) {
    const double pivot = a[p][p];
    for (std::size_t c = 0; c < n; ++c) {
      a[p][c] /= pivot;
      b[p][c] /= pivot;
    }
    for (std::size_t r = 0; r < n; ++r) {
      const double factor = a[r][p];
      if (r == p || factor == 0) {
        continue;
      }
      for (std::size_t c = 0; c < n; ++c) {
        a[r][c] -= factor * a[p][c];
        b[r][c] -= factor * b[p][c];
      }
    }
  }
  return b;
}

/// Upper U with A = Uᵀ U.
inline Matrix naive_upper_cholesky(const Matrix& a) {
  const std::size_t n = a.size();
  Matrix u(n, std::vector<double>(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i; j < n; ++j) {
      double sum = a[i][j];
      for (std::size_t k = 0; k < i; ++k) {
        sum -= u[k][i] * u[k][j];
      }
      u[i][j] = i == j ? std::sqrt(sum) : sum / u[i][i];
    }
  }
  return u;
}

struct NaiveGrid {
  double scale;
  int zero;
};

template <class Weights>
NaiveGrid naive_grid(const Weights& weights, int bits, bool symmetric) {
  const int last = (1 << bits) - 1;
  double lo = 0;
  double hi = 0;
  for (const double w : weights) {
    lo = std::min(lo, w);
    hi = std::max(hi, w);
  }
  if (symmetric) {
    hi = std::max(-lo, hi);
    lo = -hi;
  }
  if (lo == 0 && hi == 0) {
    lo = -1;
    hi = 1;
  }
  const double step = (hi - lo) / last;
  return {.scale = static_cast<double>(to_float(to_half(static_cast<float>(step)))),
          .zero = symmetric ? 1 << (bits - 1) : static_cast<int>(std::nearbyint(-lo / step))};
}

inline NaiveResult naive_gptq(std::vector<float> weight, const std::vector<double>& hessian, std::int64_t cols,
                              const NaiveSettings& settings) {
  const auto n = static_cast<std::size_t>(cols);
  const auto group = static_cast<std::size_t>(settings.group < 0 ? cols : settings.group);
  const std::size_t rows = weight.size() / n;
  const std::size_t groups = n / group;
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (settings.descending) {
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return hessian[a * n + a] > hessian[b * n + b]; });
  }
  Matrix h(n, std::vector<double>(n));
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) {
    mean += hessian[i * n + i] / static_cast<double>(n);
    for (std::size_t j = 0; j < n; ++j) {
      h[i][j] = hessian[order[i] * n + order[j]];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    h[i][i] += settings.damping * mean;
  }
  const auto u = naive_upper_cholesky(naive_inverse(h));

  NaiveResult result{.codes = std::vector<std::uint8_t>(rows * n),
                     .scales = std::vector<float>(rows * groups),
                     .zeros = std::vector<std::uint8_t>(rows * groups),
                     .g_idx = std::vector<std::int32_t>(n)};
  for (std::size_t i = 0; i < n; ++i) {
    result.g_idx[order[i]] = static_cast<std::int32_t>((settings.static_groups ? order[i] : i) / group);
  }
  const int last = (1 << settings.bits) - 1;
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<double> w(n);
    for (std::size_t i = 0; i < n; ++i) {
      w[i] = static_cast<double>(weight[r * n + order[i]]);
    }
    std::vector<NaiveGrid> grids(groups);
    if (settings.static_groups) {
      for (std::size_t g = 0; g < groups; ++g) {
        const std::vector<double> part(weight.begin() + static_cast<std::ptrdiff_t>(r * n + g * group),
                                       weight.begin() + static_cast<std::ptrdiff_t>(r * n + (g + 1) * group));
        grids[g] = naive_grid(part, settings.bits, settings.symmetric);
      }
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (!settings.static_groups && i % group == 0) {
        const std::vector<double> part(w.begin() + static_cast<std::ptrdiff_t>(i),
                                       w.begin() + static_cast<std::ptrdiff_t>(i + group));
        grids[i / group] = naive_grid(part, settings.bits, settings.symmetric);
      }
      const auto g = static_cast<std::size_t>(result.g_idx[order[i]]);
      const double code = std::clamp(std::nearbyint(w[i] / grids[g].scale) + grids[g].zero, 0.0, static_cast<double>(last));
      const double error = (w[i] - grids[g].scale * (code - grids[g].zero)) / u[i][i];
      for (std::size_t j = i; j < n; ++j) {
        w[j] -= error * u[i][j];
      }
      result.codes[r * n + order[i]] = static_cast<std::uint8_t>(code);
    }
    for (std::size_t g = 0; g < groups; ++g) {
      result.scales[r * groups + g] = static_cast<float>(grids[g].scale);
      result.zeros[r * groups + g] = static_cast<std::uint8_t>(grids[g].zero);
    }
  }
  return result;
}

}  // namespace gptqd::gptq::test
