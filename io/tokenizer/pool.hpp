#pragma once
/// @file Objects that calls from several threads take, use and give back.
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace gptqd::io {

/// As many default-made objects as there are calls at once; what one call leaves in an object the next one finds.
template <class T>
class Pool {
 public:
  std::unique_ptr<T> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      return std::make_unique<T>();
    }
    auto object = std::move(idle_.back());
    idle_.pop_back();
    return object;
  }
  /// An object that is not given back (an exception took the call away) goes.
  void give_back(std::unique_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(object));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace gptqd::io
