#include "kernels/cpu/thread_pool.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>

#include "kernels/base/error.hpp"

namespace gptqd {

namespace {

/// How long a waiting thread yields before it blocks: longer than the gap between two operations of a stream, short
/// enough not to take the cores from other ranks.
constexpr std::chrono::microseconds spin_time{30};

template <class Condition>
void spin_until(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  while (!condition() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
}

}  // namespace

struct ThreadPool::Job {
  std::int64_t count;
  const std::function<void(std::int64_t, int)>& body;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;  // guards what follows
  std::exception_ptr error;
  std::int64_t error_index = std::numeric_limits<std::int64_t>::max();
};

void ThreadPool::Free::operator()(void* memory) const noexcept { std::free(memory); }

ThreadPool::ThreadPool(int threads, Progress* progress) : progress_(progress) {
  if (threads < 0) {
    throw Error(ErrorKind::usage, fmt::format("threads: got {}, expected 0 (all CPUs) or more", threads));
  }
  const int count = threads == 0 ? available_cpus() : threads;
  scratch_.resize(static_cast<std::size_t>(count));
  helpers_.reserve(static_cast<std::size_t>(count) - 1);
  for (int worker = 1; worker < count; ++worker) {
    helpers_.emplace_back([this, worker] { helper_main(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_arrived_.notify_all();
  for (auto& helper : helpers_) {
    helper.join();
  }
}

void ThreadPool::parallel_for(std::int64_t count, const std::function<void(std::int64_t, int)>& body) {
  require(!is_inside(), "thread pool: parallel_for called from inside a tile; tiles must not start work of their own");
  if (count <= 0) {
    return;
  }
  const std::lock_guard region(region_);
  caller_ = std::this_thread::get_id();
  Job job{.count = count, .body = body, .next = {}, .failed = {}, .mutex = {}, .error = {}};
  const std::int64_t wanted = std::min<std::int64_t>(count - 1, static_cast<std::int64_t>(helpers_.size()));
  if (wanted > 0) {
    std::int64_t to_wake = 0;
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      generation_.fetch_add(1);
      to_wake = std::min(wanted, sleeping_);
    }
    for (; to_wake > 0; --to_wake) {
      work_arrived_.notify_one();
    }
  }
  run_tiles(job, 0);
  if (wanted > 0) {
    spin_until([this] { return active_ == 0; });
    std::unique_lock lock(mutex_);
    job_ = nullptr;  // helpers that come later find the tiles gone and stay out
    helpers_left_.wait(lock, [this] { return active_ == 0; });
  }
  caller_ = std::thread::id{};
  if (job.error) {
    std::rethrow_exception(job.error);
  }
}

void ThreadPool::helper_main(int worker) {
  std::uint64_t seen = 0;
  while (true) {
    spin_until([&] { return generation_ != seen || stopping_; });
    std::unique_lock lock(mutex_);
    ++sleeping_;
    work_arrived_.wait(lock, [&] { return generation_ != seen || stopping_; });
    --sleeping_;
    if (stopping_) {
      return;
    }
    seen = generation_;
    if (job_ == nullptr) {
      continue;
    }
    Job& job = *job_;
    ++active_;
    lock.unlock();
    run_tiles(job, worker);
    lock.lock();
    --active_;
    lock.unlock();
    helpers_left_.notify_one();
  }
}

void ThreadPool::run_tiles(Job& job, int worker) {
  while (!job.failed.load(std::memory_order_relaxed)) {
    const std::int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
    if (index >= job.count) {
      return;
    }
    try {
      job.body(index, worker);
    } catch (...) {
      const std::lock_guard lock(job.mutex);
      if (index < job.error_index) {
        job.error = std::current_exception();
        job.error_index = index;
      }
      job.failed = true;
    }
    if (progress_ != nullptr) {
      progress_->tick();
    }
  }
}

bool ThreadPool::is_inside() const {
  const auto self = std::this_thread::get_id();
  return caller_ == self || std::any_of(helpers_.begin(), helpers_.end(),
                                        [&](const std::thread& helper) { return helper.get_id() == self; });
}

void* ThreadPool::scratch_bytes(int worker, std::int64_t bytes) {
  Scratch& scratch = scratch_[static_cast<std::size_t>(worker)];
  if (scratch.bytes < bytes || !scratch.memory) {
    constexpr std::int64_t alignment = 256;
    const std::int64_t rounded = std::max<std::int64_t>(1, (bytes + alignment - 1) / alignment) * alignment;
    scratch.memory.reset();
    scratch.bytes = 0;
    scratch.memory.reset(std::aligned_alloc(alignment, static_cast<std::size_t>(rounded)));
    if (!scratch.memory) {
      throw Error(ErrorKind::internal,
                  fmt::format("thread pool: no memory for {} bytes of scratch a thread ({} threads); use fewer threads",
                              bytes, threads()));
    }
    scratch.bytes = rounded;
  }
  return scratch.memory.get();
}

int available_cpus() {
  // A mask of 1,024 CPUs is too small for some machines: grow it until the kernel accepts.
  for (std::size_t cpus = 1024; cpus <= std::size_t{1} << 20; cpus *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(cpus), [](cpu_set_t* set) { CPU_FREE(set); });
    if (mask && sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), mask.get()) == 0) {
      return std::max(1, CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), mask.get()));
    }
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace gptqd
