#include "tests/reference/grid.hpp"

#include <algorithm>
#include <cmath>

namespace gptqd::reference {

double round_to_bits(double x, int bits, int lowest) {
  int exponent = 0;
  std::frexp(x, &exponent);  // x in [2^(exponent−1), 2^exponent)
  const double spacing = std::ldexp(1.0, std::max(exponent - 1, lowest) - (bits - 1));
  return std::nearbyint(x / spacing) * spacing;
}

double stored_scale(double scale, ScaleFormat format) {
  if (format == ScaleFormat::f16) {
    return std::clamp(round_to_bits(scale, 11, -14), std::ldexp(1.0, -24), 65504.0);
  }
  return std::clamp(round_to_bits(scale, 8, -126), std::ldexp(1.0, -14), 65280.0);
}

template <class T>
int code_of(T weight, const Grid& grid, int bits) {
  const T steps = std::nearbyint(weight / static_cast<T>(grid.scale));
  return static_cast<int>(std::clamp(static_cast<double>(steps) + grid.zero, 0.0, std::pow(2.0, bits) - 1));
}

template <class T>
double rounding_error(T weight, const Grid& grid, int bits) {
  return grid.scale * (code_of(weight, grid, bits) - grid.zero) - static_cast<double>(weight);
}

template <class T>
std::vector<Grid> candidates(const GridSpec& spec, const std::vector<T>& weights) {
  const T highest = static_cast<T>(std::pow(2.0, spec.bits) - 1);
  T low = 0;
  T high = 0;
  for (const T weight : weights) {
    low = std::min(low, weight);
    high = std::max(high, weight);
  }
  if (low == 0 && high == 0) {
    low = -1;
    high = 1;
  } else if (spec.symmetric) {
    const bool has_negative = low < 0;
    high = std::max(high, -low);
    low = has_negative || !spec.published_symmetric ? -high : 0;
  }
  std::vector<Grid> result;
  for (int i = 0; i < (spec.clip == Clip::none ? 1 : 80); ++i) {
    const T p = static_cast<T>(1 - i / 100.0);
    const T range = p * high - p * low;
    const T s32 = range / highest;
    const int zero = spec.symmetric ? 1 << (spec.bits - 1) : static_cast<int>(std::nearbyint(-(p * low) / s32));
    result.push_back({stored_scale(static_cast<double>(static_cast<float>(s32)), spec.scale_format), zero});
  }
  return result;
}

template <class T>
double clip_error(const GridSpec& spec, const std::vector<T>& weights, const Grid& grid, const Matrix<double>* block) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double error = rounding_error(weights[i], grid, spec.bits);
    if (spec.clip != Clip::hessian) {
      sum += std::pow(std::abs(error), 2.4);
      continue;
    }
    for (std::size_t j = 0; j < weights.size(); ++j) {
      sum += error * (*block)(static_cast<std::int64_t>(i), static_cast<std::int64_t>(j)) *
             rounding_error(weights[j], grid, spec.bits);
    }
  }
  return sum;
}

template <class T>
Grid find_grid(const GridSpec& spec, const std::vector<T>& weights, const Matrix<double>* block) {
  const auto all = candidates(spec, weights);
  std::vector<double> errors;
  for (const auto& grid : all) {
    errors.push_back(spec.clip == Clip::none ? 0 : clip_error(spec, weights, grid, block));
  }
  return all[static_cast<std::size_t>(std::min_element(errors.begin(), errors.end()) - errors.begin())];
}

template int code_of(float, const Grid&, int);
template int code_of(double, const Grid&, int);
template double rounding_error(float, const Grid&, int);
template double rounding_error(double, const Grid&, int);
template std::vector<Grid> candidates(const GridSpec&, const std::vector<float>&);
template std::vector<Grid> candidates(const GridSpec&, const std::vector<double>&);
template double clip_error(const GridSpec&, const std::vector<float>&, const Grid&, const Matrix<double>*);
template double clip_error(const GridSpec&, const std::vector<double>&, const Grid&, const Matrix<double>*);
template Grid find_grid(const GridSpec&, const std::vector<float>&, const Matrix<double>*);
template Grid find_grid(const GridSpec&, const std::vector<double>&, const Matrix<double>*);

}  // namespace gptqd::reference
