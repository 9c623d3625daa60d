#include "kernels/cpu/cpu_stream.hpp"

#include <chrono>
#include <utility>

#include "kernels/base/fault_point.hpp"

namespace gptqd {

void refuse_lost_device() {
  if (device_fault() == DeviceFault::lost) {
    throw lost_device("the CPU, taken for a GPU,", "GPTQ_DIST_FAULT asked for it");
  }
}

/// A place in a queue, shared by the stream that reaches it and all who wait for it.
class CpuStream::Mark final : public Event::Impl {
 public:
  void reach(const std::optional<Error>& failure) {
    {
      const std::lock_guard lock(mutex_);
      reached_ = true;
      failure_ = failure;
    }
    changed_.notify_all();
  }
  std::optional<Error> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
    return failure_;
  }
  void synchronize() override {
    if (const auto failure = wait()) {
      throw Error(*failure);
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  std::optional<Error> failure_;
};

CpuStream::CpuStream(std::shared_ptr<WorkClock> clock)
    : clock_(std::move(clock)), slot_(clock_->add_slot()), thread_([this] { main(); }) {}

CpuStream::~CpuStream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_one();
  thread_.join();
  clock_->remove_slot(slot_);
}

void CpuStream::enqueue(std::function<void()> work) {
  push({.number = 0, .work = std::move(work), .control = {}}, /*refuse_if_failed=*/true);
}

Event CpuStream::record() {
  auto mark = std::make_shared<Mark>();
  push({.number = 0,
        .work = {},
        .control = [mark](const std::optional<Error>& failure) -> std::optional<Error> {
          mark->reach(failure);
          return std::nullopt;
        }},
       /*refuse_if_failed=*/false);
  return Event(std::move(mark));
}

void CpuStream::wait(const Event& event) {
  if (event.impl() == nullptr) {
    return;
  }
  auto mark = std::dynamic_pointer_cast<Mark>(event.shared());
  require(mark != nullptr, "cpu stream: asked to wait for an event of another backend; pass events of its own streams");
  push({.number = 0, .work = {}, .control = [mark](const std::optional<Error>&) { return mark->wait(); }},
       /*refuse_if_failed=*/false);
}

void CpuStream::synchronize() {
  record().synchronize();
  const std::lock_guard lock(mutex_);
  idle_.start();
}

void CpuStream::push(Item item, bool refuse_if_failed) {
  refuse_lost_device();
  {
    const std::lock_guard lock(mutex_);
    if (refuse_if_failed && failure_) {
      throw Error(*failure_);
    }
    if (item.work) {
      idle_.stop_at_work();
    }
    item.number = clock_->next();
    const std::uint64_t number = item.number;
    queue_.push_back(std::move(item));
    // The item being run stays at the front of the queue, so the front is always the oldest unfinished one.
    if (queue_.size() == 1) {
      slot_->store(number);
    }
  }
  arrived_.notify_one();
}

void CpuStream::main() {
  std::unique_lock lock(mutex_);
  while (true) {
    arrived_.wait(lock, [this] { return !queue_.empty() || stopping_; });
    if (queue_.empty()) {
      return;
    }
    // References into a deque survive push_back.
    Item& item = queue_.front();
    const std::optional<Error> failure = failure_;
    lock.unlock();
    std::optional<Error> error = execute(item, failure);
    lock.lock();
    if (error && !failure_) {
      failure_ = std::move(error);
    }
    queue_.pop_front();
    slot_->store(queue_.empty() ? WorkClock::idle : queue_.front().number);
  }
}

std::optional<Error> CpuStream::execute(Item& item, const std::optional<Error>& failure) {
  std::optional<Error> error;
  try {
    if (item.control) {
      error = item.control(failure);
    } else if (!failure) {
      refuse_lost_device();
      while (device_fault() == DeviceFault::hangs) {
        std::this_thread::sleep_for(std::chrono::seconds(1));
      }
      item.work();
    }
  } catch (const Error& thrown) {
    error = thrown;
  } catch (const std::exception& thrown) {
    error = Error(ErrorKind::internal, thrown.what());
  } catch (...) {
    error = Error(ErrorKind::internal, "an operation threw something that is not an exception");
  }
  // What the function captured (buffers, shared pointers) goes here, before the item counts as done.
  item.work = nullptr;
  item.control = nullptr;
  return error;
}

}  // namespace gptqd
