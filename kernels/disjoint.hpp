#pragma once
/// @file Whether two matrices share memory: for operations that must not write what they still read.
#include <cstdint>
#include <string_view>

#include "kernels/checks.hpp"

namespace gptqd::checks {

/// True when no element of `a` is one of `b`. Exact for equal row strides (column slices of one buffer); for others
/// the memory from first to last element must not meet.
inline bool are_disjoint(const ConstAnyView<2>& a, const ConstAnyView<2>& b) {
  if (a.size() == 0 || b.size() == 0) {
    return true;
  }
  struct Extent {
    std::int64_t first;
    std::int64_t stride;
    std::int64_t row;
    std::int64_t end;
  };
  const auto extent = [](const ConstAnyView<2>& view) {
    const std::int64_t first = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.data));
    const std::int64_t row = view.cols() * size_of(view.dtype);
    const std::int64_t stride = view.rows() == 1 ? row : view.stride * size_of(view.dtype);
    return Extent{first, stride, row, first + (view.rows() - 1) * stride + row};
  };
  const Extent x = extent(a);
  const Extent y = extent(b);
  if (x.end <= y.first || y.end <= x.first) {
    return true;
  }
  if (x.stride != y.stride) {
    return false;
  }
  // Rows of one pitch: y's rows begin `offset` behind the nearest row of x before them, and must end before the next.
  const std::int64_t offset = ((y.first - x.first) % x.stride + x.stride) % x.stride;
  return offset >= x.row && offset + y.row <= x.stride;
}

inline void expect_disjoint(const ConstAnyView<2>& written, std::string_view written_name, const ConstAnyView<2>& read,
                            std::string_view read_name, std::string_view operation,
                            SourceLocation location = SourceLocation::current()) {
  expect(
      are_disjoint(written, read), operation,
      [&] {
        return fmt::format("{} {} overlaps {} {}, expected separate memory", written_name, to_string(written.shape),
                           read_name, to_string(read.shape));
      },
      location);
}

}  // namespace gptqd::checks
