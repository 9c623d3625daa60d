#pragma once
/// @file Page-locked host memory, kept for reuse: locking pages costs more than copying them.
#include <cstdint>
#include <memory>

#include "kernels/base/buffer.hpp"
#include "kernels/cuda/timeline.hpp"

namespace gptqd::cuda {

/// Hands out and takes back memory at once: no work may still use it. Thread-safe. Buffers may outlive it.
class PinnedPool {
 public:
  explicit PinnedPool(std::shared_ptr<Gpu> gpu);

  /// 256-byte aligned; zero bytes give an empty Buffer. @throws Error (internal) when the host has no such memory left
  Buffer allocate(std::int64_t bytes);

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace gptqd::cuda
