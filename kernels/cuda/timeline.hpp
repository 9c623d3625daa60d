#pragma once
/// @file One GPU, and how far it has come with the work of each stream.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/base/progress.hpp"
#include "kernels/base/unique_handle.hpp"

namespace gptqd::cuda {

struct StreamTraits {
  using Handle = cudaStream_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cudaStreamDestroy(handle); }
};
struct EventTraits {
  using Handle = cudaEvent_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cudaEventDestroy(handle); }
};
using UniqueStream = UniqueHandle<StreamTraits>;
using UniqueEvent = UniqueHandle<EventTraits>;

class Timeline;

/// A timeline and a number of its work.
using Place = std::pair<std::shared_ptr<Timeline>, std::uint64_t>;

/// What the parts of a CUDA backend share. Streams, events and buffers hold it, so it goes last.
class Gpu {
 public:
  /// @throws Error (usage) when there is no such GPU or it is older than compute capability 8.0
  Gpu(int device, Progress* progress);

  int device() const { return device_; }
  const cudaDeviceProp& properties() const { return properties_; }
  Progress* progress() const { return progress_; }
  /// Makes this GPU the calling thread's: before any other call to CUDA.
  void activate() const;

  void add(const std::shared_ptr<Timeline>& timeline);
  /// Where every stream has work that is not done yet, as of now. Records marks.
  std::vector<Place> unfinished();
  /// Held while what follows from passed work is done at the host (CudaStream): one thread at a time, for streams that
  /// wait for one another do it for each other.
  std::recursive_mutex& completion_mutex() { return completion_mutex_; }

 private:
  int device_;
  Progress* progress_;
  cudaDeviceProp properties_{};
  std::recursive_mutex completion_mutex_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Timeline>> timelines_;
};

/// Which stream's blocks the GPU takes first where several wait for room.
enum class StreamPriority : std::uint8_t { background, normal, urgent };

/// Work of one stream, numbered 1, 2, ... as it is enqueued. Thread-safe.
///
/// Marks (CUDA events) follow every few pieces of work: waiting goes from mark to mark, and each one that is passed
/// ticks the progress counter, so that a watchdog sees the device work while the host waits.
class Timeline {
 public:
  explicit Timeline(std::shared_ptr<Gpu> gpu, StreamPriority priority = StreamPriority::normal);

  cudaStream_t stream() const { return stream_.get(); }
  Gpu& gpu() const { return *gpu_; }
  /// Counts work that has just been enqueued.
  void advance();
  /// The number that advance() will give next.
  std::uint64_t next() const;
  /// The number of the last work, with a mark behind it.
  std::uint64_t mark();
  /// The mark behind the last work. Empty when the stream never had any.
  std::pair<std::uint64_t, std::shared_ptr<UniqueEvent>> last_mark();
  /// Whether work `number` is done. Does not wait. @throws Error (internal) for an error of the device
  bool has_passed(std::uint64_t number);
  /// Blocks the host until it is. @throws Error (internal) for an error of the device
  void wait_for(std::uint64_t number);

 private:
  struct Mark {
    std::uint64_t number = 0;
    std::shared_ptr<UniqueEvent> event;
  };
  void mark_locked();
  void pop_locked();

  std::shared_ptr<Gpu> gpu_;
  UniqueStream stream_;
  mutable std::mutex mutex_;  // guards what follows
  std::uint64_t last_ = 0;
  std::uint64_t passed_ = 0;
  Mark newest_;
  std::deque<Mark> marks_;
};

}  // namespace gptqd::cuda
