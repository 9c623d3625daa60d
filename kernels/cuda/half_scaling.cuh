#pragma once
/// @file Powers of two that bring fp32 numbers into the range of binary16, exactly.
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// 2^k that brings a positive `largest` into [2^14, 2^15), as far as k lies in [−126, 126]; 1 for one that is not
/// finite.
///
/// Numbers down to 2^-28 of the largest then keep the 11 significant bits of binary16.
__device__ inline float half_scaling(float largest) {
  const int biased = __float_as_int(largest) >> 23;  // the exponent and 127; 255: not finite; 0: below 2^-126
  return largest > 0 && biased < 255 ? __int_as_float((127 + min(126, 14 + 127 - biased)) << 23) : 1.0f;
}

}  // namespace gptqd::cuda
