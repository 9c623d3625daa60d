#pragma once
/// @file In-order queues of a backend's work, and marks in them.
#include <memory>

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
};

}  // namespace gptqd
