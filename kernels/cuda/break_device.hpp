#pragma once
/// @file Devices that testers lose.
#include <cuda_runtime_api.h>

#include "kernels/base/fault_point.hpp"

namespace gptqd::cuda {

/// Enqueues work that ends the context (lost) or never ends (hangs).
void break_device(cudaStream_t stream, DeviceFault fault);

}  // namespace gptqd::cuda
