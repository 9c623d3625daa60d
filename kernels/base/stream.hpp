#pragma once
/// @file In-order queues of a backend's work, and marks in them.
#include <chrono>
#include <memory>
#include <optional>

namespace gptqd {

/// A mark in a stream: reached when everything enqueued before it has run. Copyable handle; empty means reached.
class Event {
 public:
  class Impl {
   public:
    virtual ~Impl() = default;
    virtual void synchronize() = 0;
  };
  Event() = default;
  explicit Event(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  /// Blocks the host until the mark is reached. @throws what the stream's work threw
  void synchronize() const {
    if (impl_) {
      impl_->synchronize();
    }
  }
  Impl* impl() const { return impl_.get(); }
  const std::shared_ptr<Impl>& shared() const { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

/// The time in which a stream was known to be empty: between a synchronize() and the work enqueued next.
class IdleClock {
 public:
  void stop_at_work() {
    if (empty_since_) {
      seconds_ += since(*empty_since_);
      empty_since_.reset();
    }
  }
  void start() {
    if (!empty_since_) {
      empty_since_ = Clock::now();
    }
  }
  double seconds() const { return seconds_ + (empty_since_ ? since(*empty_since_) : 0.0); }

 private:
  using Clock = std::chrono::steady_clock;
  static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

  double seconds_ = 0;
  std::optional<Clock::time_point> empty_since_;
};

/// An in-order queue of operations on one device. Operations on different streams are ordered by events alone.
class Stream {
 public:
  virtual ~Stream() = default;
  /// A mark behind everything enqueued so far.
  virtual Event record() = 0;
  /// Later work on this stream waits for `event` (of any stream of the same backend). Does not block the host.
  virtual void wait(const Event& event) = 0;
  /// Blocks the host until the queue is empty. @throws what the work threw; the stream then keeps refusing work
  virtual void synchronize() = 0;
  /// What the stream's device lost to its host: see IdleClock. To be asked by the thread that enqueues.
  double idle_seconds() const { return idle_.seconds(); }

 protected:
  IdleClock idle_;
};

}  // namespace gptqd
