#pragma once
/// @file Powers of two that bring fp32 numbers into the range of binary16, exactly.
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// 2^k that brings a positive `largest` into [2^14, 2^15), as far as k lies in [−126, 126]; 1 for one that is not
/// finite.
///
/// Numbers down to 2^-28 of the largest then keep the 11 significant bits of binary16.
__device__ inline float half_scaling(float largest) {
  const int exponent = largest > 0 && isfinite(largest) ? ilogbf(largest) : 14;
  return ldexpf(1.0f, max(-126, min(126, 14 - exponent)));
}

}  // namespace gptqd::cuda
