#include "kernels/cuda/timeline.hpp"

#include <algorithm>

#include "kernels/cuda/cuda_error.hpp"

namespace gptqd::cuda {

namespace {

/// Work between two marks: few enough for a watchdog, many enough for their cost (about 1 us) not to matter.
constexpr std::uint64_t work_per_mark = 16;

UniqueStream make_stream(StreamPriority priority) {
  int least = 0;
  int greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities of streams");
  int value = least;  // lower numbers go first
  if (priority == StreamPriority::urgent) {
    value = greatest;
  } else if (priority == StreamPriority::normal) {
    value = std::max(greatest, least - 1);
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, value), "creating a stream");
  return UniqueStream(stream);
}

}  // namespace

Gpu::Gpu(int device, Progress* progress) : device_(device), progress_(progress) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || device < 0 || device >= count) {
    throw Error(ErrorKind::usage,
                fmt::format("CUDA device {}: this machine has {} ({}); give a rank each its GPU, or run with --device "
                            "cpu",
                            device, status == cudaSuccess ? count : 0, cudaGetErrorString(status)));
  }
  check(cudaGetDeviceProperties(&properties_, device), "reading the GPU's properties");
  if (properties_.major < 8) {
    throw Error(ErrorKind::usage,
                fmt::format("CUDA device {}, {}: its compute capability is {}.{}, expected 8.0 (A100) or newer; run "
                            "with --device cpu",
                            device, properties_.name, properties_.major, properties_.minor));
  }
  activate();
}

void Gpu::activate() const { check(cudaSetDevice(device_), "choosing a GPU"); }

void Gpu::add(const std::shared_ptr<Timeline>& timeline) {
  const std::lock_guard lock(mutex_);
  timelines_.erase(
      std::remove_if(timelines_.begin(), timelines_.end(), [](const auto& entry) { return entry.expired(); }),
      timelines_.end());
  timelines_.push_back(timeline);
}

std::vector<Place> Gpu::unfinished() {
  std::vector<Place> places;
  const std::lock_guard lock(mutex_);
  for (const auto& entry : timelines_) {
    if (auto timeline = entry.lock()) {
      const std::uint64_t number = timeline->mark();
      if (!timeline->has_passed(number)) {
        places.emplace_back(std::move(timeline), number);
      }
    }
  }
  return places;
}

Timeline::Timeline(std::shared_ptr<Gpu> gpu, StreamPriority priority)
    : gpu_(std::move(gpu)), stream_(make_stream(priority)) {}

void Timeline::advance() {
  const std::lock_guard lock(mutex_);
  ++last_;
  if (last_ - newest_.number >= work_per_mark) {
    mark_locked();
  }
}

std::uint64_t Timeline::next() const {
  const std::lock_guard lock(mutex_);
  return last_ + 1;
}

std::uint64_t Timeline::mark() { return last_mark().first; }

std::pair<std::uint64_t, std::shared_ptr<UniqueEvent>> Timeline::last_mark() {
  const std::lock_guard lock(mutex_);
  mark_locked();
  return {last_, newest_.event};
}

bool Timeline::has_passed(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  while (passed_ < number && !marks_.empty()) {
    const cudaError_t status = cudaEventQuery(marks_.front().event->get());
    if (status == cudaErrorNotReady) {
      return false;
    }
    check(status, "asking how far the GPU is");
    pop_locked();
  }
  return passed_ >= number;
}

void Timeline::wait_for(std::uint64_t number) {
  std::unique_lock lock(mutex_);
  if (newest_.number < number) {
    mark_locked();
  }
  while (passed_ < number && !marks_.empty()) {
    const Mark first = marks_.front();
    lock.unlock();
    check(cudaEventSynchronize(first.event->get()), "waiting for the GPU");
    lock.lock();
    if (!marks_.empty() && marks_.front().number == first.number) {
      pop_locked();
    }
  }
}

void Timeline::mark_locked() {
  if (newest_.number == last_) {
    return;
  }
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  auto owner = std::make_shared<UniqueEvent>(event);
  check(cudaEventRecord(event, stream_.get()), "recording an event");
  newest_ = {last_, std::move(owner)};
  marks_.push_back(newest_);
}

void Timeline::pop_locked() {
  passed_ = std::max(passed_, marks_.front().number);
  marks_.pop_front();
  if (gpu_->progress() != nullptr) {
    gpu_->progress()->tick();
  }
}

}  // namespace gptqd::cuda
