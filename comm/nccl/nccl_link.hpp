#pragma once
/// @file A connection of NCCL and the thread that watches over its transfers. Internal to comm/nccl.
#include <nccl.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "comm/group.hpp"
#include "kernels/base/error.hpp"
#include "kernels/base/unique_handle.hpp"
#include "kernels/cuda/timeline.hpp"

namespace gptqd::comm {

/// Whether the GPU has passed an event, or failed. Does not wait.
bool has_passed(const cuda::UniqueEvent& event);

/// Marks before and behind a piece of a stream's work, with times.
struct EventPair {
  cuda::UniqueEvent begin;
  cuda::UniqueEvent end;
};

struct Transfer {
  std::string what;
  EventPair span;
};

struct NcclTraits {
  using Handle = ncclComm_t;
  static constexpr Handle none = nullptr;
  /// Without the other ranks, which may be gone. Kernels that wait for them end.
  static void destroy(Handle handle) noexcept { ncclCommAbort(handle); }
};

/// NCCL among the ranks of a group, non-blocking: no call of it holds up a thread, and none is made by two at a time.
///
/// A rank whose GPU waits for its peers in a transfer waits as much as one that waits in MPI does: a thread says so to
/// the watchdog, which judges it by its rules (World), and asks NCCL meanwhile whether it has failed. If it has, the
/// connection is aborted, which releases the GPU, and whoever waits for the streams gets the Error.
class NcclLink {
 public:
  /// Connects. Collective over the group, which outlives this.
  /// @throws Error (internal) with NCCL's message
  NcclLink(Group& group, const cuda::Gpu& gpu);
  /// Orderly, unless an exception passes.
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  using Calls = std::function<ncclResult_t(ncclComm_t)>;
  /// Makes one call, or one group of calls, and waits until NCCL has taken it in.
  /// @throws Error (internal) with NCCL's message; the link's failure
  void call(std::string_view doing, const Calls& calls);
  /// Watches over a transfer that is on its stream, until it is complete.
  void watch(std::shared_ptr<const Transfer> transfer);
  /// @throws Error by which the link has failed
  void throw_failure() const { failure_->throw_it(); }
  /// The same, for when this link may be gone.
  std::function<void()> failure_check() const {
    return [failure = failure_] { failure->throw_it(); };
  }

 private:
  class Failure {
   public:
    void set(const Error& error);
    void throw_it() const;

   private:
    mutable std::mutex mutex_;
    std::optional<Error> error_;
  };

  /// Of the call before. @throws Error (internal) when the link has been aborted
  ncclResult_t state();
  /// What was done, and what NCCL says of it.
  Error error(ncclResult_t result, std::string_view doing);
  void watch_transfers();
  std::shared_ptr<const Transfer> next_transfer();
  /// Aborts the link where NCCL has failed. @return false from then on
  bool is_alive(std::string_view doing);
  bool is_stopping();
  void disconnect();

  Group& group_;
  const cuda::Gpu& gpu_;
  int exceptions_at_start_ = std::uncaught_exceptions();
  std::shared_ptr<Failure> failure_ = std::make_shared<Failure>();

  std::mutex nccl_mutex_;  // held during every call to NCCL; guards comm_
  UniqueHandle<NcclTraits> comm_;

  std::mutex queue_mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::shared_ptr<const Transfer>> queue_;
  bool stopping_ = false;

  std::thread watcher_;
};

}  // namespace gptqd::comm
