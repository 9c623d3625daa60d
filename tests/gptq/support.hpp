#pragma once
/// @file Random layers and unpacked results.
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gptq/quantize_group.hpp"
#include "tests/gptq/local_team.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::gptq::test {

/// Numbers of mean 0 and variance 1, the same with every standard library.
inline std::vector<float> normal(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (auto& value : values) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) {
      sum += static_cast<double>(generator()) / 4294967296.0;
    }
    value = static_cast<float>(sum);
  }
  return values;
}

/// [tokens, cols] activations whose columns are correlated and of unequal size.
inline std::vector<float> activations(std::int64_t tokens, std::int64_t cols, unsigned seed) {
  auto x = normal(tokens * cols, seed);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* const row = x.data() + t * cols;
    float previous = 0;
    for (std::int64_t c = 0; c < cols; ++c) {
      previous = row[c] + 0.7f * previous;
      row[c] = previous * (1.0f + 0.5f * static_cast<float>((c * 7) % 5));
    }
  }
  return x;
}

/// XᵀX in f64.
inline std::vector<double> gram(std::span<const float> x, std::int64_t cols) {
  const auto n = static_cast<std::size_t>(cols);
  std::vector<double> h(n * n, 0.0);
  for (std::size_t t = 0; t < x.size() / n; ++t) {
    for (std::size_t r = 0; r < n; ++r) {
      for (std::size_t c = 0; c < n; ++c) {
        h[r * n + c] += static_cast<double>(x[t * n + r]) * static_cast<double>(x[t * n + c]);
      }
    }
  }
  return h;
}

/// Row-major values as the reference implementations take them.
template <class To, class From>
reference::Matrix<To> matrix(const std::vector<From>& values, std::int64_t cols) {
  reference::Matrix<To> result(std::ssize(values) / cols, cols);
  std::copy(values.begin(), values.end(), result.data.begin());
  return result;
}

/// The host's copy of a QuantizedLinear.
struct HostLinear {
  std::vector<std::uint32_t> packed;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> g_idx;
  std::string record;  // JSON, without seconds
  LayerRecord layer_record;

  bool operator==(const HostLinear& other) const {
    return packed == other.packed && scales == other.scales && zeros == other.zeros && g_idx == other.g_idx &&
           record == other.record;
  }
};

inline HostLinear download(Team& team, const QuantizedLinear& linear, int bits) {
  return {.packed = download<std::uint32_t>(team, linear.packed, linear.rows * linear.cols * bits / 32),
          .scales = download<float>(team, linear.scales, linear.rows * linear.groups),
          .zeros = download<std::uint8_t>(team, linear.zeros, linear.rows * linear.groups),
          .g_idx = download<std::int32_t>(team, linear.g_idx, linear.cols),
          .record = linear.record.to_json().dump(),
          .layer_record = linear.record};
}

inline std::vector<HostLinear> download(Team& team, const std::vector<QuantizedLinear>& linears, int bits) {
  std::vector<HostLinear> all;
  for (const auto& linear : linears) {
    all.push_back(download(team, linear, bits));
  }
  return all;
}

/// [rows, cols] codes from rows of LSB-first bit streams.
inline std::vector<std::uint8_t> unpack(std::span<const std::uint32_t> packed, std::int64_t rows, std::int64_t cols,
                                        int bits) {
  const auto words = static_cast<std::size_t>(cols * bits / 32);
  std::vector<std::uint8_t> codes;
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    for (std::int64_t i = 0; i < cols; ++i) {
      unsigned code = 0;
      for (int bit = 0; bit < bits; ++bit) {
        const auto place = static_cast<std::size_t>(i * bits + bit);
        code |= (packed[r * words + place / 32] >> place % 32 & 1u) << bit;
      }
      codes.push_back(static_cast<std::uint8_t>(code));
    }
  }
  return codes;
}

/// Q − W of a result.
inline std::vector<double> errors_of(const HostLinear& linear, std::span<const float> weight, std::int64_t rows,
                                     std::int64_t cols, int bits) {
  const auto codes = unpack(linear.packed, rows, cols, bits);
  const auto groups = linear.scales.size() / static_cast<std::size_t>(rows);
  std::vector<double> delta(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto r = i / static_cast<std::size_t>(cols);
    const auto g = r * groups + static_cast<std::size_t>(linear.g_idx[i % static_cast<std::size_t>(cols)]);
    delta[i] = static_cast<double>(linear.scales[g]) * (codes[i] - linear.zeros[g]) - static_cast<double>(weight[i]);
  }
  return delta;
}

/// tr(δHδᵀ).
template <class T>
double weighted_norm(std::span<const T> delta, std::span<const double> h, std::int64_t cols) {
  const auto n = static_cast<std::size_t>(cols);
  double sum = 0;
  for (std::size_t r = 0; r < delta.size() / n; ++r) {
    for (std::size_t i = 0; i < n; ++i) {
      double product = 0;
      for (std::size_t j = 0; j < n; ++j) {
        product += h[i * n + j] * static_cast<double>(delta[r * n + j]);
      }
      sum += static_cast<double>(delta[r * n + i]) * product;
    }
  }
  return sum;
}

}  // namespace gptqd::gptq::test
