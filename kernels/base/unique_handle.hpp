#pragma once
/// @file Owner of a library's handle.
#include <utility>

namespace gptqd {

/// Move-only owner. Traits: `using Handle`, `static constexpr Handle none`, `static void destroy(Handle) noexcept`.
template <class Traits>
class UniqueHandle {
 public:
  using Handle = typename Traits::Handle;

  UniqueHandle() = default;
  explicit UniqueHandle(Handle handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, Traits::none)) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  UniqueHandle(const UniqueHandle&) = delete;
  UniqueHandle& operator=(const UniqueHandle&) = delete;
  ~UniqueHandle() {
    if (handle_ != Traits::none) {
      Traits::destroy(handle_);
    }
  }

  Handle get() const { return handle_; }
  /// Gives the handle away.
  [[nodiscard]] Handle release() { return std::exchange(handle_, Traits::none); }
  explicit operator bool() const { return handle_ != Traits::none; }

 private:
  Handle handle_ = Traits::none;
};

}  // namespace gptqd
