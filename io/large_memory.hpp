#pragma once
/// @file Memory for files that are read, or made, whole.
#include <cstddef>
#include <memory>
#include <span>

namespace gptqd::io {

/// Bytes without a value, in huge pages where the system has any: with small ones a tenth of a merge's time went into
/// making them.
class LargeMemory {
 public:
  LargeMemory() = default;
  /// @throws std::bad_alloc
  explicit LargeMemory(std::size_t bytes);

  /// Such memory for owners of other kinds, who give it to std::free. Null where there is none.
  static std::byte* allocate(std::size_t bytes);

  std::span<std::byte> bytes() { return {memory_.get(), size_}; }
  std::span<const std::byte> bytes() const { return {memory_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace gptqd::io
