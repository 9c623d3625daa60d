#pragma once
/// @file Owner of a piece of a backend's memory.
#include <cstdint>
#include <functional>
#include <utility>

#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// Move-only owner of bytes on a backend's device, 256-byte aligned; gives them back to its arena when destroyed.
///
/// Giving back never throws and never waits: the backend keeps the memory from being handed out again before the
/// work that was enqueued before the release has run.
class Buffer {
 public:
  using Release = std::function<void(void* data, std::int64_t bytes)>;

  Buffer() = default;
  Buffer(void* data, std::int64_t bytes, Release release) : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) {
      release_(data_, bytes_);
    }
  }

  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    release_.swap(other.release_);
  }
  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

  /// The first elements of the buffer as a dense tensor, `offset_bytes` from its start.
  template <class T, int Rank>
  TensorView<T, Rank> view(Shape<Rank> shape, std::int64_t offset_bytes = 0) const {
    TensorView<T, Rank> result(reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset_bytes), shape);
    require(offset_bytes + result.size() * static_cast<std::int64_t>(sizeof(T)) <= bytes_,
            "buffer: view is larger than the buffer");
    return result;
  }
  template <int Rank>
  AnyView<Rank> any_view(DType dtype, Shape<Rank> shape, std::int64_t offset_bytes = 0) const {
    AnyView<Rank> result(static_cast<std::byte*>(data_) + offset_bytes, dtype, shape);
    require(offset_bytes + result.bytes() <= bytes_, "buffer: view is larger than the buffer");
    return result;
  }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Release release_;
};

}  // namespace gptqd
