#include "comm/nccl/nccl_link.hpp"

#include <chrono>
#include <utility>

#include "kernels/cuda/cuda_error.hpp"

namespace gptqd::comm {

namespace {

using Clock = std::chrono::steady_clock;

/// Between two looks at transfers that have not begun: whether they have matters to messages alone.
constexpr std::chrono::milliseconds look_period{1};
/// Longest wait for an orderly end; without one nothing is lost.
constexpr std::chrono::seconds end_limit{5};

}  // namespace

bool has_passed(const cuda::UniqueEvent& event) {
  if (cudaEventQuery(event.get()) != cudaErrorNotReady) {
    return true;
  }
  // "Not yet" must not be found by whoever asks for the last error next.
  if (cudaPeekAtLastError() == cudaErrorNotReady) {
    cudaGetLastError();
  }
  return false;
}

void NcclLink::Failure::set(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!error_) {
    error_.emplace(error);
  }
}

void NcclLink::Failure::throw_it() const {
  const std::lock_guard lock(mutex_);
  if (error_) {
    throw Error(*error_);
  }
}

NcclLink::NcclLink(Group& group, const cuda::Gpu& gpu) : group_(group), gpu_(gpu) {
  gpu_.activate();
  ncclUniqueId id{};
  if (group.rank() == 0) {
    if (const auto result = ncclGetUniqueId(&id); result != ncclSuccess) {
      throw error(result, "making an identifier");
    }
  }
  id = group.broadcast_value(id, 0, "NCCL's identifier");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  call("starting", [&](ncclComm_t) {
    ncclComm_t comm = nullptr;
    const auto result = ncclCommInitRankConfig(&comm, group.size(), id, group.rank(), &config);
    comm_ = UniqueHandle<NcclTraits>(comm);
    return result;
  });
  watcher_ = std::thread([this] { watch_transfers(); });
}

NcclLink::~NcclLink() {
  {
    const std::lock_guard lock(queue_mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  watcher_.join();
  if (comm_ && std::uncaught_exceptions() == exceptions_at_start_) {
    disconnect();
  }
}

void NcclLink::call(std::string_view doing, const Calls& calls) {
  throw_failure();
  ncclResult_t result = ncclSuccess;
  {
    const std::lock_guard lock(nccl_mutex_);
    result = calls(comm_.get());
  }
  if (result == ncclInProgress) {
    group_.wait_until(fmt::format("{} over NCCL", doing), [&] { return (result = state()) != ncclInProgress; });
  }
  if (result != ncclSuccess) {
    throw error(result, doing);
  }
}

ncclResult_t NcclLink::state() {
  throw_failure();
  const std::lock_guard lock(nccl_mutex_);
  ncclResult_t state = ncclSuccess;
  const auto asked = ncclCommGetAsyncError(comm_.get(), &state);
  return asked == ncclSuccess ? state : asked;
}

Error NcclLink::error(ncclResult_t result, std::string_view doing) {
  if (result == ncclUnhandledCudaError) {
    try {
      gpu_.activate();
    } catch (const Error& own) {
      return own;  // a lost device says more than NCCL does
    }
  }
  const std::lock_guard lock(nccl_mutex_);
  return Error(ErrorKind::internal, fmt::format("NCCL: while {}: {}: {}; set NCCL_DEBUG=INFO to see its log", doing,
                                                ncclGetErrorString(result), ncclGetLastError(comm_.get())));
}

void NcclLink::watch(std::shared_ptr<const Transfer> transfer) {
  {
    const std::lock_guard lock(queue_mutex_);
    queue_.push_back(std::move(transfer));
  }
  changed_.notify_all();
}

std::shared_ptr<const Transfer> NcclLink::next_transfer() {
  std::unique_lock lock(queue_mutex_);
  changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
  if (stopping_) {
    return nullptr;
  }
  auto transfer = std::move(queue_.front());
  queue_.pop_front();
  return transfer;
}

bool NcclLink::is_stopping() {
  const std::lock_guard lock(queue_mutex_);
  return stopping_;
}

void NcclLink::watch_transfers() {
  try {
    gpu_.activate();
    while (const auto transfer = next_transfer()) {
      while (!has_passed(transfer->span.begin) && !is_stopping()) {
        std::this_thread::sleep_for(look_period);
      }
      group_.wait_until(transfer->what, [&] {
        if (has_passed(transfer->span.end) || is_stopping() || !is_alive(transfer->what)) {
          return true;
        }
        std::this_thread::sleep_for(look_period);  // nobody waits for this thread
        return false;
      });
    }
  } catch (...) {
    // The job is ending, or the device has failed, which whoever waits for its streams learns there.
  }
}

bool NcclLink::is_alive(std::string_view doing) {
  {
    const std::lock_guard lock(nccl_mutex_);
    if (!comm_) {
      return false;
    }
  }
  const auto result = state();
  if (result == ncclSuccess || result == ncclInProgress) {
    return true;
  }
  failure_->set(error(result, doing));
  const std::lock_guard lock(nccl_mutex_);
  const UniqueHandle<NcclTraits> dead = std::move(comm_);
  return false;
}

void NcclLink::disconnect() {
  const auto deadline = Clock::now() + end_limit;
  const std::lock_guard lock(nccl_mutex_);
  ncclResult_t state = ncclCommFinalize(comm_.get());
  while (state == ncclInProgress && Clock::now() < deadline) {
    std::this_thread::sleep_for(look_period);
    if (ncclCommGetAsyncError(comm_.get(), &state) != ncclSuccess) {
      return;
    }
  }
  if (state == ncclSuccess) {
    ncclCommDestroy(comm_.release());
  }
}

}  // namespace gptqd::comm
