#pragma once
/// @file The diagonal blocks H_gg that Clip::hessian weighs errors with, in the type of the search.
#include <type_traits>
#include <vector>

#include "kernels/cpu/dispatch.hpp"

namespace gptqd::cpu {

/// Gives each group's block as T: the caller's memory for float, a copy for double. Empty without blocks.
template <class T>
class GroupBlocks {
 public:
  /// @param blocks  [groups, size, size], or empty
  /// @throws Error (internal) when a group has more columns than a block
  GroupBlocks(ConstTensorView<float, 3> blocks, const GroupColumns& groups, std::string_view operation)
      : view_(blocks), size_(blocks.shape[1]) {
    if (view_.data == nullptr) {
      return;
    }
    if (groups.largest() > size_) {
      throw Error(ErrorKind::internal, fmt::format("{}: blocks are {}, expected room for the {} columns of a group",
                                                   operation, to_string(blocks.shape), groups.largest()));
    }
    if constexpr (!std::is_same_v<T, float>) {
      for (std::int64_t g = 0; g < blocks.shape[0]; ++g) {
        copy_.insert(copy_.end(), blocks.data + g * blocks.stride, blocks.data + g * blocks.stride + size_ * size_);
      }
    }
  }

  /// Block of group g, or null without blocks.
  const T* of(std::int64_t g) const {
    if (view_.data == nullptr) {
      return nullptr;
    }
    if constexpr (std::is_same_v<T, float>) {
      return view_.data + g * view_.stride;
    } else {
      return copy_.data() + g * size_ * size_;
    }
  }
  std::int64_t stride() const { return size_; }

 private:
  ConstTensorView<float, 3> view_;
  std::int64_t size_;
  std::vector<T> copy_;
};

}  // namespace gptqd::cpu
