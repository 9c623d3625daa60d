#include "tests/reference/gptq.hpp"

#include <algorithm>
#include <numeric>

#include "tests/reference/factor.hpp"
#include "tests/reference/grid.hpp"

namespace gptqd::reference {

namespace {

/// Grids of the columns [first, first + count) of w, as column g of scales and zeros.
void find_grids(const GridSpec& spec, const Matrix<double>& w, std::int64_t first, std::int64_t count, std::int64_t g,
                GptqResult& result) {
  for (std::int64_t r = 0; r < w.rows; ++r) {
    std::vector<double> values;
    for (auto c = first; c < first + count; ++c) {
      values.push_back(w(r, c));
    }
    const auto grid = find_grid(spec, values);
    result.scales(r, g) = static_cast<float>(grid.scale);
    result.zeros(r, g) = static_cast<std::uint8_t>(grid.zero);
  }
}

}  // namespace

std::vector<std::int32_t> descending_diagonal(const Matrix<double>& h) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(h.rows));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return h(a, a) > h(b, b); });
  return order;
}

GptqResult gptq(const Matrix<double>& weights, const Matrix<double>& hessian, const GptqOptions& options) {
  const auto n = weights.cols;
  const auto size = options.group_size < 0 ? n : options.group_size;
  const bool dynamic = options.group_size >= 0 && !options.static_groups;
  GptqResult result;
  result.codes = Matrix<std::uint8_t>(weights.rows, n);
  result.scales = Matrix<float>(weights.rows, n / size);
  result.zeros = Matrix<std::uint8_t>(weights.rows, n / size);
  result.g_idx.resize(static_cast<std::size_t>(n));

  if (options.group_size < 0) {
    find_grids(options.grid, weights, 0, n, 0, result);
  }
  auto h = hessian;
  auto w = weights;
  for (std::int64_t c = 0; c < n; ++c) {
    if (h(c, c) == 0) {
      h(c, c) = 1;
      for (std::int64_t r = 0; r < w.rows; ++r) {
        w(r, c) = 0;
      }
    }
  }
  if (options.group_size >= 0 && options.static_groups) {
    for (std::int64_t g = 0; g < n / size; ++g) {
      find_grids(options.grid, w, g * size, size, g, result);
    }
  }
  result.weights = w;

  double mean = 0;
  for (std::int64_t c = 0; c < n; ++c) {
    mean += h(c, c) / static_cast<double>(n);
  }
  result.order.resize(static_cast<std::size_t>(n));
  std::iota(result.order.begin(), result.order.end(), 0);
  if (options.act_order) {
    result.order = descending_diagonal(h);
  }
  for (std::int64_t c = 0; c < n; ++c) {
    h(c, c) += options.damping * mean;
  }
  result.damped_hessian = h;

  const auto upper = transposed(*cholesky(inverse(permuted(h, result.order))));
  w = permuted_columns(w, result.order);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto column = result.order[static_cast<std::size_t>(i)];
    const auto g = options.static_groups ? column / size : i / size;
    result.g_idx[static_cast<std::size_t>(column)] = static_cast<std::int32_t>(g);
    if (dynamic && i % size == 0) {
      find_grids(options.grid, w, i, size, g, result);
    }
    for (std::int64_t r = 0; r < w.rows; ++r) {
      const Grid grid{static_cast<double>(result.scales(r, g)), result.zeros(r, g)};
      const int code = code_of(w(r, i), grid, options.grid.bits);
      result.codes(r, column) = static_cast<std::uint8_t>(code);
      const double error = (w(r, i) - grid.scale * (code - grid.zero)) / upper(i, i);
      for (auto k = i; k < n; ++k) {
        w(r, k) -= error * upper(i, k);
      }
    }
  }
  return result;
}

double layer_loss(const Matrix<double>& weights, const Matrix<double>& hessian, const Matrix<std::uint8_t>& codes,
                  const Matrix<float>& scales, const Matrix<std::uint8_t>& zeros,
                  const std::vector<std::int32_t>& g_idx) {
  Matrix<double> delta(weights.rows, weights.cols);
  for (std::int64_t r = 0; r < weights.rows; ++r) {
    for (std::int64_t c = 0; c < weights.cols; ++c) {
      const auto g = g_idx[static_cast<std::size_t>(c)];
      delta(r, c) = static_cast<double>(scales(r, g)) * (codes(r, c) - zeros(r, g)) - weights(r, c);
    }
  }
  const auto weighted = product(delta, hessian);
  double loss = 0;
  for (std::size_t i = 0; i < delta.data.size(); ++i) {
    loss += weighted.data[i] * delta.data[i];
  }
  return loss;
}

}  // namespace gptqd::reference
