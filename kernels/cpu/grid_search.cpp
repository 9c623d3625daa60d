#include "kernels/cpu/grid_search.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/cpu/blas.hpp"

namespace gptqd::cpu {

namespace {

// Errors are summed in chunks: float lanes inside a chunk, double across chunks.
constexpr std::int64_t chunk = 512;
constexpr std::int64_t lanes = 16;

/// |e|^2.4 = (x·x^-0.4)² with x = e², to 6e-7 relative; 0 for 0.
///
/// y = x^-0.2 starts from its logarithm as the bits of x show it (to 3 %), improved twice through r = 1 − x·y⁵:
/// y·(1 − r)^-0.2 = y·(1 + r/5 + 3r²/25 + 11r³/125 + ...).
[[gnu::always_inline]] inline float power_2_4(float e) {
  const float x = e * e;
  const float guess = 0x1.30ae14p+30f - static_cast<float>(std::bit_cast<std::int32_t>(x)) * 0.2f;
  float y = std::bit_cast<float>(static_cast<std::int32_t>(guess));
  float y2 = y * y;
  float r = 1.0f - (x * y) * (y2 * y2);
  y = y * (1.0f + r * (0.2f + r * (0.12f + r * 0.088f)));
  y2 = y * y;
  r = 1.0f - (x * y) * (y2 * y2);
  y = y + y * (r * 0.2f);
  const float root = x * (y * y);
  return root * root;
}

/// *sum += Σ |ŵ − w|^2.4 over at most one chunk of weights.
template <class T>
struct PowerError {
  [[gnu::always_inline]] static inline void run(const T* weights, std::int64_t size, T scale, T zero, T highest,
                                                double* sum) {
    float terms[chunk];
    for (std::int64_t i = 0; i < size; ++i) {
      const T code = vectorized::code_of(weights[i], scale, zero, highest);
      terms[i] = power_2_4(static_cast<float>(scale * (code - zero) - weights[i]));
    }
    const std::int64_t padded = (size + lanes - 1) / lanes * lanes;
    for (std::int64_t i = size; i < padded; ++i) {
      terms[i] = 0;
    }
    float part[lanes] = {};
    for (std::int64_t i = 0; i < padded; i += lanes) {
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        part[lane] += terms[i + lane];
      }
    }
    for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
      for (std::int64_t lane = 0; lane < half; ++lane) {
        part[lane] += part[lane + half];
      }
    }
    *sum += static_cast<double>(part[0]);
  }
};

/// delta = ŵ − w.
template <class T>
struct RoundingError {
  [[gnu::always_inline]] static inline void run(const T* weights, std::int64_t size, T scale, T zero, T highest,
                                                T* delta) {
    for (std::int64_t i = 0; i < size; ++i) {
      delta[i] = scale * (vectorized::code_of(weights[i], scale, zero, highest) - zero) - weights[i];
    }
  }
};

template <class T>
double dot(const T* a, const T* b, std::int64_t size) {
  double part[8] = {};
  for (std::int64_t i = 0; i < size; ++i) {
    part[i % 8] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

}  // namespace

float stored_scale(float scale, ScaleFormat format) {
  const bool half = format == ScaleFormat::f16;
  const float rounded = half ? to_float(to_half(scale)) : to_float(to_bfloat16(scale));
  // 65280 is the largest number of 8 significant bits that binary16 holds.
  return half ? vectorized::clamp(rounded, 0x1p-24f, 65504.0f) : vectorized::clamp(rounded, 0x1p-14f, 65280.0f);
}

template <class T>
GridSearch<T>::GridSearch(const GridSpec& spec, vectorized::Level level)
    : spec_(spec), level_(level), highest_(static_cast<T>((1 << spec.bits) - 1)) {}

template <class T>
typename GridSearch<T>::Range GridSearch<T>::range_of(const T* weights, std::int64_t size) const {
  T low = 0;
  T high = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    low = weights[i] < low ? weights[i] : low;
    high = weights[i] > high ? weights[i] : high;
  }
  if (low == 0 && high == 0) {
    return {-1, 1};
  }
  if (spec_.symmetric) {
    high = std::max(-low, high);
    if (low < 0 || !spec_.published_symmetric) {
      low = -high;
    }
  }
  return {low, high};
}

template <class T>
typename GridSearch<T>::Candidate GridSearch<T>::candidate(Range range, int index) const {
  const T shrink = static_cast<T>(1.0 - index / 100.0);
  const T low = shrink * range.low;
  const T high = shrink * range.high;
  const T exact = (high - low) / highest_;
  const T zero = spec_.symmetric ? static_cast<T>(1 << (spec_.bits - 1))
                                 : vectorized::clamp(vectorized::round_half_even(-low / exact), T{0}, highest_);
  const float scale = stored_scale(static_cast<float>(exact), spec_.scale_format);
  return {{scale, static_cast<std::uint8_t>(zero)}, static_cast<T>(scale), zero};
}

/// Stops at a sum that reaches `enough`: terms are not negative, so such a candidate has lost.
template <class T>
double GridSearch<T>::power_error(const T* weights, std::int64_t size, const Candidate& candidate,
                                  double enough) const {
  double sum = 0;
  for (std::int64_t i = 0; i < size && !(sum >= enough); i += chunk) {
    vectorized::call<PowerError<T>>(level_, weights + i, std::min(chunk, size - i), candidate.scale, candidate.zero,
                                    highest_, &sum);
  }
  return sum;
}

template <class T>
Grid GridSearch<T>::best_by_power(const T* weights, std::int64_t size, Range range) const {
  auto best = candidate(range, 0);
  double least = power_error(weights, size, best, std::numeric_limits<double>::infinity());
  for (int i = 1; i < clip_candidates; ++i) {
    const auto next = candidate(range, i);
    const double error = power_error(weights, size, next, least);
    if (error < least) {
      least = error;
      best = next;
    }
  }
  return best.grid;
}

template <class T>
Grid GridSearch<T>::best_by_hessian(const T* weights, std::int64_t size, Range range, const T* block,
                                    std::int64_t stride) {
  const auto entries = static_cast<std::size_t>(clip_candidates * size);
  delta_.resize(std::max(delta_.size(), entries));
  product_.resize(std::max(product_.size(), entries));
  for (int i = 0; i < clip_candidates; ++i) {
    const auto next = candidate(range, i);
    vectorized::call<RoundingError<T>>(level_, weights, size, next.scale, next.zero, highest_,
                                       delta_.data() + i * size);
  }
  blas::gemm(blas::Op::none, blas::Op::none, clip_candidates, size, size, T{1}, delta_.data(), size, block, stride,
             T{0}, product_.data(), size);
  int best = 0;
  double least = dot(delta_.data(), product_.data(), size);
  for (int i = 1; i < clip_candidates; ++i) {
    const double error = dot(delta_.data() + i * size, product_.data() + i * size, size);
    if (error < least) {
      least = error;
      best = i;
    }
  }
  return candidate(range, best).grid;
}

template <class T>
Grid GridSearch<T>::find(const T* weights, std::int64_t size, const T* block, std::int64_t stride) {
  const auto range = range_of(weights, size);
  switch (spec_.clip) {
    case Clip::mse:
      return best_by_power(weights, size, range);
    case Clip::hessian:
      return best_by_hessian(weights, size, range, block, stride);
    case Clip::none:
      break;
  }
  return candidate(range, 0).grid;
}

template class GridSearch<float>;
template class GridSearch<double>;

}  // namespace gptqd::cpu
