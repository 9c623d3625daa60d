#pragma once
/// @file The quantizer's arithmetic on the device, operation by operation that of kernels/cpu/ (vectorized.hpp,
/// grid_search.cpp), so that grids and codes are the same bits. Sources that include this are compiled with
/// -fmad=false.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/grid.hpp"

namespace gptqd::cuda {

/// Candidates that Clip::mse and Clip::hessian compare: p = 1 − i/100 for i = 0 ... 79.
inline constexpr int clip_candidates = 80;

/// rint(x), half to even, for |x| < 2^22 (double: 2^51); for larger |x| a value that is at least as large.
template <class T>
__device__ T round_half_even(T x) {
  constexpr T shift = static_cast<T>(3ll << (std::numeric_limits<T>::digits - 2));
  return (x + shift) - shift;
}

/// x limited to [low, high]; low where x is NaN.
template <class T>
__device__ T clamp(T x, T low, T high) {
  const T above = x > low ? x : low;
  return above < high ? above : high;
}

/// q = clamp(rint(w/s) + z, 0, highest), as a number of type T.
template <class T>
__device__ T code_of(T weight, T scale, T zero, T highest) {
  return clamp(round_half_even(weight / scale) + zero, T{0}, highest);
}

/// `scale` rounded to nearest even in its stored form, kept inside the range that the form holds.
__device__ inline float stored_scale(float scale, ScaleFormat format) {
  if (format == ScaleFormat::f16) {
    return clamp(__half2float(__float2half_rn(scale)), 0x1p-24f, 65504.0f);
  }
  return clamp(__bfloat162float(__float2bfloat16_rn(scale)), 0x1p-14f, 65280.0f);
}

/// A grid's range before it shrinks.
template <class T>
struct GridRange {
  T low;
  T high;
};

/// The range of a group from its smallest and largest weight, each together with 0.
template <class T>
__device__ GridRange<T> grid_range(T low, T high, const GridSpec& spec) {
  if (low == 0 && high == 0) {
    return {-1, 1};
  }
  if (spec.symmetric) {
    high = -low < high ? high : -low;
    if (low < 0 || !spec.published_symmetric) {
      low = -high;
    }
  }
  return {low, high};
}

/// One grid: the scale as stored, and the zero, an integer.
template <class T>
struct GridCandidate {
  float scale;
  T zero;
};

/// p of a candidate. In fp32 the product has the quotient's bits.
template <class T>
__host__ __device__ constexpr T candidate_shrink(int index) {
  return static_cast<T>(std::is_same_v<T, float> ? 1.0 - index * 0.01 : 1.0 - index / 100.0);
}
static_assert([] {
  for (int i = 0; i < clip_candidates; ++i) {
    if (candidate_shrink<float>(i) != static_cast<float>(1.0 - i / 100.0)) {
      return false;
    }
  }
  return true;
}());

template <class T>
__device__ GridCandidate<T> grid_candidate(GridRange<T> range, int index, const GridSpec& spec) {
  const T highest = static_cast<T>((1 << spec.bits) - 1);
  const T shrink = candidate_shrink<T>(index);
  const T low = shrink * range.low;
  const T high = shrink * range.high;
  const T exact = (high - low) / highest;
  const T zero =
      spec.symmetric ? static_cast<T>(1 << (spec.bits - 1)) : clamp(round_half_even(-low / exact), T{0}, highest);
  return {stored_scale(static_cast<float>(exact), spec.scale_format), zero};
}

/// Rounds weights to one grid. Gives the error s·(q − z) − w without q.
///
/// Clamping rint(w/s) to [−z, highest − z] is clamping the code, as all are integers that T holds exactly.
template <class T>
struct GridRounder {
  T scale;
  T least;  // −z
  T most;   // highest − z

  GridRounder() = default;
  __device__ GridRounder(T scale_, T zero, T highest) : scale(scale_), least(-zero), most(highest - zero) {}
  __device__ T error(T weight) const { return scale * clamp(round_half_even(weight / scale), least, most) - weight; }
};

/// In fp32 without a division, with the same bits.
///
/// With r = RN(1/s), q = RN(w·r) and the remainder w − q·s, which is exact, q + remainder·r differs from w/s by less
/// than 2^-22 of q's last place. A quotient by a scale of at most 11 significant bits is never that close to the
/// middle between two floats (2^-12 of a place; exactly there w would need 25 bits), so rounding gives RN(w/s).
/// s·(q − z) is exact: 11 bits and 9. @pre |w/s| < 2^100, which holds for the weights that the grid was found from
template <>
struct GridRounder<float> {
  float scale;
  float reciprocal;
  float least;
  float most;

  GridRounder() = default;
  __device__ GridRounder(float scale_, float zero, float highest)
      : scale(scale_), reciprocal(1.0f / scale_), least(-zero), most(highest - zero) {}
  __device__ float error(float weight) const {
    const float near = weight * reciprocal;
    const float quotient = __fmaf_rn(__fmaf_rn(-near, scale, weight), reciprocal, near);
    return __fmaf_rn(scale, fminf(fmaxf(round_half_even(quotient), least), most), -weight);
  }
};

}  // namespace gptqd::cuda
