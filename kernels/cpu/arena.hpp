#pragma once
/// @file The CPU backend's memory: 256-byte aligned blocks, kept for reuse, given back safely while work is running.
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/base/buffer.hpp"

namespace gptqd {

/// Numbers the work enqueued on all streams of a backend, and knows which of it is still to be done.
class WorkClock {
 public:
  static constexpr std::uint64_t idle = ~std::uint64_t{0};

  /// One stream's place in the clock: the number of its oldest unfinished work, or `idle`.
  using Slot = std::atomic<std::uint64_t>;
  std::shared_ptr<Slot> add_slot();
  void remove_slot(const std::shared_ptr<Slot>& slot) noexcept;

  /// A new number, larger than all before.
  std::uint64_t next() noexcept { return now_.fetch_add(1) + 1; }
  std::uint64_t now() const noexcept { return now_.load(); }
  /// All work with a number below this one has been done.
  std::uint64_t oldest_unfinished() const noexcept;

 private:
  std::atomic<std::uint64_t> now_{0};
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Slot>> slots_;
};

/// Hands out and takes back memory. Thread-safe. Buffers may outlive it.
///
/// A released block is marked with the clock's time and becomes available once every stream has done all work that was
/// enqueued before: whatever the work that uses it and whichever its stream, it has run by then. Blocks come in size
/// classes (at most 1/8 larger than asked for) and are kept while the idle ones hold no more than the peak in use.
class Arena {
 public:
  explicit Arena(std::shared_ptr<WorkClock> clock);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Zero bytes give an empty Buffer. @throws Error (internal) naming bytes asked for and in use when memory runs out
  Buffer allocate(std::int64_t bytes);
  std::int64_t bytes_in_use() const;
  std::int64_t peak_bytes() const;
  /// Bytes held for reuse, available or waiting for work to pass.
  std::int64_t bytes_cached() const;

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace gptqd
