#pragma once
/// @file What every validate() checks of its tensors, with messages that say what was got and what was expected.
#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>

#include "kernels/base/error.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd::checks {

/// Throws ErrorKind::internal "operation: message" unless `holds`: callers check users' data before.
template <class Message>
void expect(bool holds, std::string_view operation, Message&& message,
            SourceLocation location = SourceLocation::current()) {
  if (!holds) {
    throw Error(ErrorKind::internal, fmt::format("{}: {}", operation, message()), location);
  }
}

/// A tensor of exactly this shape, with memory behind it and rows that do not overlap.
template <class View, std::size_t Rank>
void expect_tensor(const View& view, const std::array<std::int64_t, Rank>& shape, std::string_view operation,
                   std::string_view name, SourceLocation location = SourceLocation::current()) {
  expect(
      view.shape == shape, operation,
      [&] { return fmt::format("{} is {}, expected {}", name, to_string(view.shape), to_string(shape)); }, location);
  expect(
      std::all_of(shape.begin(), shape.end(), [](std::int64_t extent) { return extent >= 0; }), operation,
      [&] { return fmt::format("{} is {}, expected no negative extent", name, to_string(shape)); }, location);
  std::int64_t row = 1;
  for (std::size_t i = 1; i < Rank; ++i) {
    row *= shape[i];
  }
  expect(
      Rank == 1 || shape[0] <= 1 || view.stride >= row, operation,
      [&] { return fmt::format("rows of {} are {} elements apart, expected at least {}", name, view.stride, row); },
      location);
  expect(
      view.data != nullptr || shape[0] * row == 0, operation,
      [&] { return fmt::format("{} {} has no memory", name, to_string(shape)); }, location);
}

/// As above, of one of these element types.
template <class View, std::size_t Rank>
void expect_tensor(const View& view, const std::array<std::int64_t, Rank>& shape, std::initializer_list<DType> dtypes,
                   std::string_view operation, std::string_view name,
                   SourceLocation location = SourceLocation::current()) {
  expect(
      std::find(dtypes.begin(), dtypes.end(), view.dtype) != dtypes.end(), operation,
      [&] {
        std::string names;
        for (const auto dtype : dtypes) {
          names += fmt::format("{}{}", names.empty() ? "" : " or ", name_of(dtype));
        }
        return fmt::format("{} is {}, expected {}", name, name_of(view.dtype), names);
      },
      location);
  expect_tensor(view, shape, operation, name, location);
}

/// The widths of codes that the formats know.
inline void expect_bits(int bits, std::string_view operation, SourceLocation location = SourceLocation::current()) {
  expect(
      bits == 2 || bits == 3 || bits == 4 || bits == 8, operation,
      [&] { return fmt::format("bits = {}, expected 2, 3, 4 or 8", bits); }, location);
}

}  // namespace gptqd::checks
