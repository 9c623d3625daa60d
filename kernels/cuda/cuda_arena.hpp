#pragma once
/// @file The CUDA backend's memory.
#include <cstdint>
#include <memory>

#include "kernels/base/buffer.hpp"
#include "kernels/cuda/timeline.hpp"

namespace gptqd::cuda {

/// Hands out and takes back device memory, 256-byte aligned, from a few large pieces. Thread-safe; buffers may outlive
/// it.
///
/// A released buffer's memory becomes available once every stream has done what was enqueued before the release. While
/// too much of it waits for that (more than an eighth of the peak in use, and 256 MiB), allocate() waits rather than
/// takes more from CUDA: a host that runs far ahead is held back. In the steady state CUDA is not asked for memory.
class CudaArena {
 public:
  explicit CudaArena(std::shared_ptr<Gpu> gpu);

  /// Zero bytes give an empty Buffer. @throws Error (internal) naming bytes asked for and in use when memory runs out
  Buffer allocate(std::int64_t bytes);
  std::int64_t bytes_in_use() const;
  std::int64_t peak_bytes() const;
  /// Bytes taken from CUDA.
  std::int64_t bytes_held() const;

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace gptqd::cuda
