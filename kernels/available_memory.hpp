#pragma once
/// @file Memory that a machine has left.
#include <cstdint>

#include "kernels/backend.hpp"

namespace gptqd {

/// Bytes that new allocations of this host's processes can take together (MemAvailable of /proc/meminfo).
/// @throws Error (io) where the system does not tell
std::int64_t available_host_bytes();

/// Bytes left where a backend's buffers lie: on its GPU, or the host's. To be asked by the thread that made the
/// backend.
std::int64_t available_bytes(const Backend& backend);

/// Bytes left on the calling thread's GPU. @throws Error (not_built) in a build without CUDA. Defined in kernels/cuda/.
std::int64_t available_cuda_bytes();

}  // namespace gptqd
