#pragma once
/// @file The counter by which a watchdog sees that work goes on.
#include <atomic>
#include <cstdint>

namespace gptqd {

/// Ticked by kernels once per tile and by readers once per chunk; read by comm's watchdog. Thread-safe, wait-free.
class Progress {
 public:
  void tick() noexcept { ticks_.fetch_add(1, std::memory_order_relaxed); }
  std::uint64_t ticks() const noexcept { return ticks_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> ticks_{0};
};

}  // namespace gptqd
