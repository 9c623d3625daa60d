#pragma once
/// @file From run-time arguments to typed code: element types, tiles, and the columns of groups.
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/base/tensor_view.hpp"

namespace gptqd::cpu {

/// body(T{}) with T = float or double. @throws Error (internal) for another type: the CPU computes in f32 and f64
template <class Body>
void with_real_type(DType dtype, std::string_view operation, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::f64:
      return body(double{});
    default:
      throw Error(ErrorKind::internal, fmt::format("{}: {} on the CPU, which computes in F32 or F64; convert first",
                                                   operation, name_of(dtype)));
  }
}

/// Tiles of `size` that cover `extent`; the last one may be smaller.
constexpr std::int64_t tile_count(std::int64_t extent, std::int64_t size) { return (extent + size - 1) / size; }

/// The columns of each group.
class GroupColumns {
 public:
  /// @param group   [n], the group of each column
  /// @param member  [n], the position of each column inside its group; empty: columns in ascending order
  /// @throws Error (internal) unless groups lie in [0, groups) and the members of a group of k columns are 0 ... k − 1
  GroupColumns(ConstTensorView<std::int32_t, 1> group, ConstTensorView<std::int32_t, 1> member, std::int64_t groups,
               std::string_view operation);

  std::int64_t groups() const { return static_cast<std::int64_t>(begin_.size()) - 1; }
  /// Columns of group g in the order of their members.
  std::span<const std::int32_t> columns(std::int64_t g) const {
    const auto begin = begin_[static_cast<std::size_t>(g)];
    return std::span(columns_).subspan(begin, begin_[static_cast<std::size_t>(g) + 1] - begin);
  }
  /// Columns of the largest group.
  std::int64_t largest() const;

 private:
  std::vector<std::size_t> begin_;
  std::vector<std::int32_t> columns_;
};

/// @throws Error (internal) unless every index lies in [0, limit)
void check_indices(ConstTensorView<std::int32_t, 1> indices, std::int64_t limit, std::string_view operation,
                   std::string_view name);

}  // namespace gptqd::cpu
