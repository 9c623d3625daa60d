#pragma once
/// @file In-order queues of the CPU backend: a thread each, truly asynchronous.
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "kernels/base/error.hpp"
#include "kernels/base/stream.hpp"
#include "kernels/cpu/arena.hpp"

namespace gptqd {

/// @throws Error as of a lost GPU, where a tester asked for one (GPTQ_DIST_FAULT)
void refuse_lost_device();

/// Runs enqueued functions one after another on a thread of its own.
///
/// The first exception that one of them throws makes the stream fail: what is queued behind it is dropped, marks behind
/// it are reached with that error (so a stream that waits for them fails too and none hangs), and enqueue() and
/// synchronize() throw it from then on.
class CpuStream final : public Stream {
 public:
  explicit CpuStream(std::shared_ptr<WorkClock> clock);
  /// Runs what is queued, then ends the thread. Errors that nobody asked for are lost.
  ~CpuStream() override;
  CpuStream(const CpuStream&) = delete;
  CpuStream& operator=(const CpuStream&) = delete;

  /// @throws the Error by which the stream has failed
  void enqueue(std::function<void()> work);

  Event record() override;
  /// @throws Error (internal) for an event of another kind of backend
  void wait(const Event& event) override;
  void synchronize() override;

 private:
  class Mark;
  /// Work is dropped once the stream has failed; control runs always and returns the error it learned of, if any.
  struct Item {
    std::uint64_t number = 0;
    std::function<void()> work;
    std::function<std::optional<Error>(const std::optional<Error>& failure)> control;
  };

  void push(Item item, bool refuse_if_failed);
  void main();
  static std::optional<Error> execute(Item& item, const std::optional<Error>& failure);

  std::shared_ptr<WorkClock> clock_;
  std::shared_ptr<WorkClock::Slot> slot_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable arrived_;
  std::deque<Item> queue_;
  std::optional<Error> failure_;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace gptqd
