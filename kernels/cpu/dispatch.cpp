#include "kernels/cpu/dispatch.hpp"

#include <algorithm>

#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace vectorized {

Level best_level() {
  static const Level level = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return Level::avx512;
    }
    return __builtin_cpu_supports("avx2") ? Level::avx2 : Level::baseline;
  }();
  return level;
}

}  // namespace vectorized

namespace cpu {

void check_indices(ConstTensorView<std::int32_t, 1> indices, std::int64_t limit, std::string_view operation,
                   std::string_view name) {
  for (std::int64_t i = 0; i < indices.rows(); ++i) {
    if (indices(i) < 0 || indices(i) >= limit) {
      throw Error(ErrorKind::internal,
                  fmt::format("{}: {}[{}] = {}, expected an index in [0, {})", operation, name, i, indices(i), limit));
    }
  }
}

GroupColumns::GroupColumns(ConstTensorView<std::int32_t, 1> group, ConstTensorView<std::int32_t, 1> member,
                           std::int64_t groups, std::string_view operation)
    : begin_(static_cast<std::size_t>(groups) + 1), columns_(static_cast<std::size_t>(group.rows()), -1) {
  check_indices(group, groups, operation, "group");
  const auto n = group.rows();
  for (std::int64_t c = 0; c < n; ++c) {
    ++begin_[static_cast<std::size_t>(group(c)) + 1];
  }
  for (std::size_t g = 1; g < begin_.size(); ++g) {
    begin_[g] += begin_[g - 1];
  }
  auto next = begin_;
  for (std::int64_t c = 0; c < n; ++c) {
    const auto g = static_cast<std::size_t>(group(c));
    const auto size = static_cast<std::int64_t>(begin_[g + 1] - begin_[g]);
    const auto place = member.rows() > 0 ? std::int64_t{member(c)} : static_cast<std::int64_t>(next[g]++ - begin_[g]);
    if (place < 0 || place >= size || columns_[begin_[g] + static_cast<std::size_t>(place)] >= 0) {
      throw Error(ErrorKind::internal,
                  fmt::format("{}: column {} is member {} of group {}, expected each of [0, {}) once", operation, c,
                              place, g, size));
    }
    columns_[begin_[g] + static_cast<std::size_t>(place)] = static_cast<std::int32_t>(c);
  }
}

std::int64_t GroupColumns::largest() const {
  std::size_t largest = 0;
  for (std::size_t g = 1; g < begin_.size(); ++g) {
    largest = std::max(largest, begin_[g] - begin_[g - 1]);
  }
  return static_cast<std::int64_t>(largest);
}

}  // namespace cpu

}  // namespace gptqd
