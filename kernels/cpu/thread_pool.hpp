#pragma once
/// @file The threads over which the CPU backend spreads the tiles of an operation.
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/base/progress.hpp"

namespace gptqd {

/// A fixed set of threads that run the tiles of one operation at a time.
///
/// Not OpenMP: libgomp's barriers are invisible to ThreadSanitizer, and oversubscribed ranks need threads that block.
/// Results must not depend on which worker runs a tile, so split work by shape, never by threads().
class ThreadPool {
 public:
  /// @param threads   workers, the caller of parallel_for being one of them; 0: one per CPU this process may use
  /// @param progress  ticked once per tile; may be null
  /// @throws Error (usage) for a negative number
  explicit ThreadPool(int threads = 0, Progress* progress = nullptr);
  /// @pre no parallel_for is running
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  /// Runs body(index, worker) for every index in [0, count), in any order; worker is in [0, threads()), and no two
  /// calls with the same worker run at once. Returns when all have run. A second caller waits for the first.
  ///
  /// After an exception no further index is handed out; the one of the lowest index is rethrown here.
  /// @throws Error (internal) when called from inside a body
  void parallel_for(std::int64_t count, const std::function<void(std::int64_t index, int worker)>& body);

  /// Memory of one worker for use inside a body: 256-byte aligned, contents undefined, at least `count` elements.
  /// Valid until the worker's next call of scratch(); kept between operations. @throws Error when memory runs out
  template <class T>
  T* scratch(int worker, std::int64_t count) {
    return static_cast<T*>(scratch_bytes(worker, count * static_cast<std::int64_t>(sizeof(T))));
  }

 private:
  struct Job;
  struct Free {
    void operator()(void* memory) const noexcept;
  };
  struct Scratch {
    std::unique_ptr<void, Free> memory;
    std::int64_t bytes = 0;
  };

  void helper_main(int worker);
  void run_tiles(Job& job, int worker);
  bool is_inside() const;
  void* scratch_bytes(int worker, std::int64_t bytes);

  Progress* progress_;
  std::vector<std::thread> helpers_;
  std::vector<Scratch> scratch_;  // one a worker, touched by that worker alone

  std::mutex region_;                      // held by the one running parallel_for
  std::atomic<std::thread::id> caller_{};  // who holds it

  std::mutex mutex_;  // guards what follows
  std::condition_variable work_arrived_;
  std::condition_variable helpers_left_;
  Job* job_ = nullptr;
  std::int64_t sleeping_ = 0;
  std::atomic<std::uint64_t> generation_{0};  // written under the mutex, spun on without
  std::atomic<int> active_{0};                // helpers inside the job; likewise
  std::atomic<bool> stopping_{false};         // likewise
};

/// CPUs in this process's affinity mask, at least 1.
int available_cpus();

}  // namespace gptqd
