#include "pipeline/verify/weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/base/error.hpp"

namespace gptqd::pipeline {

namespace {

constexpr std::int64_t piece_bytes = std::int64_t{4} << 20;

template <class Stored>
void widen(const std::byte* from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    Stored value;
    std::memcpy(&value, from + i * sizeof(Stored), sizeof(Stored));
    if constexpr (std::is_same_v<Stored, float> || std::is_same_v<Stored, double>) {
      to[i] = static_cast<float>(value);
    } else {
      to[i] = to_float(value);
    }
  }
}

/// A row's scale and zero by group.
struct RowGrid {
  std::vector<float> scales;
  std::vector<float> zeros;

  void load(const io::PackedLinear& linear, std::int64_t row) {
    const auto groups = static_cast<std::size_t>(linear.groups());
    scales.resize(groups);
    zeros.resize(groups);
    for (std::size_t g = 0; g < groups; ++g) {
      const auto at = g * static_cast<std::size_t>(linear.rows) + static_cast<std::size_t>(row);
      scales[g] = to_float(linear.scales[at]);
      zeros[g] = static_cast<float>(linear.zeros[at]);
    }
  }
};

nlohmann::json number(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(); }

}  // namespace

void widen(DType dtype, const std::byte* from, std::span<float> to) {
  switch (dtype) {
    case DType::f16:
      return widen<Half>(from, to);
    case DType::bf16:
      return widen<BFloat16>(from, to);
    case DType::f32:
      return widen<float>(from, to);
    default:
      require(dtype == DType::f64, "verify: a weight that is no floating tensor");
      return widen<double>(from, to);
  }
}

CodeStatistics code_statistics(const io::PackedLinear& linear, const std::vector<std::uint8_t>& codes) {
  CodeStatistics result;
  result.min_scale = INFINITY;
  result.max_scale = -INFINITY;
  for (const auto scale : linear.scales) {
    const double value = to_float(scale);
    result.min_scale = std::min(result.min_scale, value);
    result.max_scale = std::max(result.max_scale, value);
    result.zero_scales += value == 0 ? 1 : 0;
    result.negative_scales += value < 0 ? 1 : 0;
  }
  const auto last = static_cast<std::uint8_t>((1 << linear.bits) - 1);
  const auto lowest = std::count(codes.begin(), codes.end(), std::uint8_t{0});
  const auto highest = std::count(codes.begin(), codes.end(), last);
  result.saturated = static_cast<double>(lowest + highest) / static_cast<double>(codes.size());
  result.one_code = std::all_of(codes.begin(), codes.end(), [&](std::uint8_t code) { return code == codes.front(); });
  return result;
}

WeightDifference weight_difference(const io::PackedLinear& linear, const std::vector<std::uint8_t>& codes,
                                   const io::CheckpointReader& source, const io::TensorInfo& weight) {
  WeightDifference result;
  const std::int64_t row_bytes = linear.cols * size_of(weight.dtype);
  const std::int64_t rows_a_piece = std::max<std::int64_t>(1, piece_bytes / row_bytes);
  const float last = static_cast<float>((1 << linear.bits) - 1);
  std::vector<std::byte> piece;
  std::vector<float> row(static_cast<std::size_t>(linear.cols));
  RowGrid grid;
  double error = 0;
  double norm = 0;
  double steps = 0;
  double shift = 0;
  std::int64_t shifted = 0;
  for (std::int64_t n = 0; n < linear.rows; ++n) {
    if (n % rows_a_piece == 0) {
      piece.resize(static_cast<std::size_t>(std::min(rows_a_piece, linear.rows - n) * row_bytes));
      source.read_range(weight, n * row_bytes, piece);
    }
    widen(weight.dtype, piece.data() + n % rows_a_piece * row_bytes, row);
    grid.load(linear, n);
    double row_error = 0;
    double row_norm = 0;
    for (std::size_t k = 0; k < row.size(); ++k) {
      const auto group = static_cast<std::size_t>(linear.g_idx[k]);
      const float scale = grid.scales[group];
      const auto code = static_cast<float>(codes[static_cast<std::size_t>(n) * row.size() + k]);
      const float difference = scale * (code - grid.zeros[group]) - row[k];
      if (!std::isfinite(difference)) {
        ++result.non_finite;
        continue;
      }
      row_error += static_cast<double>(difference) * difference;
      row_norm += static_cast<double>(row[k]) * row[k];
      if (scale == 0) {
        continue;
      }
      const double step = static_cast<double>(difference) / scale;
      steps += static_cast<double>(scale) * scale;
      shift += step;
      ++shifted;
      result.worst_step = std::max(result.worst_step, std::abs(step));
      result.far_codes += (code == 0 || code == last) && std::abs(step) > 0.5 ? 1 : 0;
    }
    result.bad_rows += row_norm > 0 && row_error > row_norm ? 1 : 0;
    error += row_error;
    norm += row_norm;
  }
  result.relative_error = norm > 0 ? std::sqrt(error / norm) : error > 0 ? INFINITY : 0.0;
  result.error_in_steps = steps > 0 ? std::sqrt(12 * error / steps) : 0.0;
  result.mean_step = shifted > 0 ? shift / static_cast<double>(shifted) : 0.0;
  return result;
}

nlohmann::json to_json(const CodeStatistics& statistics) {
  return {{"min_scale", number(statistics.min_scale)}, {"max_scale", number(statistics.max_scale)},
          {"zero_scales", statistics.zero_scales},     {"negative_scales", statistics.negative_scales},
          {"saturated", statistics.saturated},         {"one_code", statistics.one_code}};
}

nlohmann::json to_json(const WeightDifference& difference) {
  return {{"relative_error", number(difference.relative_error)},
          {"error_in_steps", number(difference.error_in_steps)},
          {"mean_step", number(difference.mean_step)},
          {"worst_step", number(difference.worst_step)},
          {"far_codes", difference.far_codes},
          {"bad_rows", difference.bad_rows},
          {"non_finite", difference.non_finite}};
}

}  // namespace gptqd::pipeline
