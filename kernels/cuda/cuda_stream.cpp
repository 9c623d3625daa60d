#include "kernels/cuda/cuda_stream.hpp"

#include <algorithm>
#include <utility>

#include "kernels/base/fault_point.hpp"
#include "kernels/cuda/break_device.hpp"

namespace gptqd::cuda {

namespace {

constexpr std::int64_t alignment = 256;
constexpr std::int64_t staging_bytes = 4 * CudaStream::staging_piece;
/// Findings that may be open at once; beyond these the host waits.
constexpr std::int64_t most_findings = 4096;
/// Things to do at the host that may be open at once; beyond these the host waits.
constexpr std::size_t most_completions = 65536;

}  // namespace

PinnedMemory::PinnedMemory(std::int64_t bytes) {
  check(cudaHostAlloc(&data_, static_cast<std::size_t>(bytes), cudaHostAllocPortable), "taking pinned host memory");
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

/// What a stream shares with its events.
class CudaStream::State {
 public:
  State(const std::shared_ptr<Gpu>& gpu, StreamPriority priority)
      : timeline(std::make_shared<Timeline>(gpu, priority)) {
    gpu->add(timeline);
  }

  /// Waits until work `number` is done and does at the host what follows from it.
  /// @throws Error by which the stream had failed by then; of the device: then nothing is done at the host
  void reach(std::uint64_t number) {
    try {
      timeline->wait_for(number);
    } catch (const Error& error) {
      fail(number, error);
      throw;
    }
    const std::lock_guard completing(timeline->gpu().completion_mutex());
    while (const auto completion = pop(number)) {
      try {
        completion->second();
      } catch (const Error& error) {
        fail(completion->first, error);
      }
    }
    throw_failure(number);
  }

  void add(std::function<void()> completion) {
    const std::lock_guard lock(mutex_);
    completions_.emplace_back(timeline->next(), std::move(completion));
  }
  std::size_t open() const {
    const std::lock_guard lock(mutex_);
    return completions_.size();
  }
  /// @throws Error by which the stream failed at work `number` or before
  void throw_failure(std::uint64_t number) const {
    const std::lock_guard lock(mutex_);
    if (failure_ && failure_->first <= number) {
      throw Error(failure_->second);
    }
  }

  const std::shared_ptr<Timeline> timeline;

  // Guarded by the completion mutex. Staging memory is a ring: pieces come back in the order in which they were taken.
  struct Staged {
    std::int64_t end = 0;
    std::uint64_t number = 0;
  };
  std::unique_ptr<PinnedMemory> staging;
  std::deque<Staged> staged;      // pieces handed out
  std::int64_t staged_begin = 0;  // bytes given back, counted from the stream's beginning, gaps included
  std::int64_t staged_end = 0;    // bytes handed out, likewise
  std::unique_ptr<PinnedMemory> findings;
  std::vector<Finding*> free_findings;

 private:
  using Completion = std::pair<std::uint64_t, std::function<void()>>;

  std::optional<Completion> pop(std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    if (completions_.empty() || completions_.front().first > number) {
      return std::nullopt;
    }
    std::optional<Completion> first(std::move(completions_.front()));
    completions_.pop_front();
    return first;
  }
  void fail(std::uint64_t number, const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!failure_) {
      failure_.emplace(number, error);
    }
  }

  mutable std::mutex mutex_;  // guards what follows
  std::deque<Completion> completions_;
  std::optional<std::pair<std::uint64_t, Error>> failure_;
};

namespace {

/// A mark in a stream.
class Mark final : public Event::Impl {
 public:
  Mark(std::function<void(std::uint64_t)> reach, std::pair<std::uint64_t, std::shared_ptr<UniqueEvent>> mark)
      : reach_(std::move(reach)), number_(mark.first), event_(std::move(mark.second)) {}
  void synchronize() override { reach_(number_); }
  /// Null when the stream had no work.
  cudaEvent_t event() const { return event_ ? event_->get() : nullptr; }

 private:
  std::function<void(std::uint64_t)> reach_;
  std::uint64_t number_;
  std::shared_ptr<UniqueEvent> event_;
};

}  // namespace

CudaStream::CudaStream(std::shared_ptr<Gpu> gpu, CudaArena& arena, StreamPriority priority)
    : gpu_(std::move(gpu)), arena_(arena), state_((gpu_->activate(), std::make_shared<State>(gpu_, priority))) {}

CudaStream::~CudaStream() {
  try {
    gpu_->activate();
    // For the device alone: what would follow at the host may write to memory whose owner is gone.
    state_->timeline->wait_for(state_->timeline->mark());
  } catch (...) {
    // Nobody asked.
  }
}

Event CudaStream::record() {
  gpu_->activate();
  return Event(std::make_shared<Mark>([state = state_](std::uint64_t number) { state->reach(number); },
                                      state_->timeline->last_mark()));
}

void CudaStream::wait(const Event& event) {
  if (event.impl() == nullptr) {
    return;
  }
  auto mark = std::dynamic_pointer_cast<Mark>(event.shared());
  require(mark != nullptr,
          "cuda stream: asked to wait for an event of another backend; pass events of its own streams");
  if (mark->event() == nullptr) {
    return;
  }
  gpu_->activate();
  check(cudaStreamWaitEvent(stream(), mark->event(), 0), "making a stream wait for another");
  when_passed([mark] { mark->synchronize(); });
  end("wait");
}

void CudaStream::synchronize() {
  gpu_->activate();
  state_->reach(state_->timeline->mark());
  idle_.start();
}

cudaStream_t CudaStream::stream() const { return state_->timeline->stream(); }

cublasHandle_t CudaStream::blas() {
  if (!blas_) {
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle), "starting");
    UniqueHandle<BlasTraits> owner(handle);
    check(cublasSetStream(handle, stream()), "choosing a stream");
    check(cublasSetWorkspace(handle, workspace(), static_cast<std::size_t>(workspace_bytes)), "setting its workspace");
    // What cuBLAS may otherwise choose for speed: results with atomics, or fp32 products in TF32.
    check(cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED), "forbidding atomics");
    check(cublasSetMathMode(handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                              CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
          "asking for fp32 accumulation");
    blas_ = std::move(owner);
  }
  return blas_.get();
}

cublasLtHandle_t CudaStream::blas_lt() {
  if (!blas_lt_) {
    cublasLtHandle_t handle = nullptr;
    check(cublasLtCreate(&handle), "starting");
    blas_lt_ = UniqueHandle<BlasLtTraits>(handle);
  }
  return blas_lt_.get();
}

cusolverDnHandle_t CudaStream::solver() {
  if (!solver_) {
    cusolverDnHandle_t handle = nullptr;
    check(cusolverDnCreate(&handle), "starting");
    UniqueHandle<SolverTraits> owner(handle);
    check(cusolverDnSetStream(handle, stream()), "choosing a stream");
    solver_ = std::move(owner);
  }
  return solver_.get();
}

void* CudaStream::workspace() {
  if (!workspace_) {
    workspace_ = arena_.allocate(workspace_bytes);
  }
  return workspace_.data();
}

void* CudaStream::scratch(std::int64_t bytes) {
  if (scratch_.bytes() < bytes) {
    scratch_ = Buffer();  // before the larger one is taken
    scratch_ = arena_.allocate(bytes);
  }
  return scratch_.data();
}

Finding* CudaStream::expect_no_finding(std::function<std::string(const Finding&)> describe) {
  std::unique_lock completing(gpu_->completion_mutex());
  auto& open = state_->free_findings;
  if (!state_->findings) {
    state_->findings = std::make_unique<PinnedMemory>(most_findings * static_cast<std::int64_t>(sizeof(Finding)));
    auto* first = reinterpret_cast<Finding*>(state_->findings->data());
    for (std::int64_t i = 0; i < most_findings; ++i) {
      open.push_back(first + i);
    }
  }
  while (open.empty()) {
    completing.unlock();
    synchronize();
    completing.lock();
  }
  Finding* finding = open.back();
  open.pop_back();
  *finding = Finding{};
  // The completion must not hold the state that holds the completion.
  when_passed([state = state_.get(), finding, describe = std::move(describe)] {
    const Finding found = *finding;
    state->free_findings.push_back(finding);
    if (found.position >= 0) {
      throw Error(ErrorKind::internal, describe(found));
    }
  });
  return finding;
}

void CudaStream::when_passed(std::function<void()> then) {
  if (state_->open() >= most_completions) {
    synchronize();
  }
  state_->add(std::move(then));
}

std::byte* CudaStream::stage(std::int64_t bytes, std::function<void(const std::byte*)> then) {
  require(bytes > 0 && bytes <= staging_piece, fmt::format("cuda stream: asked to stage {} bytes", bytes));
  State& state = *state_;
  std::unique_lock completing(gpu_->completion_mutex());
  if (!state.staging) {
    state.staging = std::make_unique<PinnedMemory>(staging_bytes);
  }
  std::int64_t begin = (state.staged_end + alignment - 1) / alignment * alignment;
  if (begin % staging_bytes + bytes > staging_bytes) {
    begin = (begin + staging_bytes - 1) / staging_bytes * staging_bytes;  // pieces do not wrap around
  }
  while (begin + bytes - state.staged_begin > staging_bytes) {
    const std::uint64_t oldest = state.staged.front().number;
    completing.unlock();
    state.reach(oldest);
    completing.lock();
  }
  state.staged_end = begin + bytes;
  state.staged.push_back({.end = state.staged_end, .number = state.timeline->next()});
  std::byte* const piece = state.staging->data() + begin % staging_bytes;
  when_passed([&state, piece, then = std::move(then)] {
    if (then) {
      then(piece);
    }
    state.staged_begin = state.staged.front().end;
    state.staged.pop_front();
  });
  return piece;
}

void CudaStream::begin() {
  idle_.stop_at_work();
  gpu_->activate();
  if (const auto fault = device_fault(); fault != DeviceFault::none) {
    break_device(stream(), fault);
  }
  state_->throw_failure(~std::uint64_t{0});
}

void CudaStream::end(std::string_view operation) {
  check(cudaGetLastError(), operation);
  state_->timeline->advance();
}

void CudaStream::mark() { state_->timeline->mark(); }

}  // namespace gptqd::cuda
