#include "gptq/column_order.hpp"

#include <algorithm>
#include <bit>
#include <boost/sort/spreadsort/integer_sort.hpp>
#include <numeric>
#include <utility>

namespace gptqd::gptq {

namespace {

struct Ranked {
  std::uint64_t key = 0;  ///< small for large values; equal for equal ones
  std::int32_t column = 0;
};

Ranked ranked(double value, std::int32_t column) {
  constexpr std::uint64_t sign = std::uint64_t{1} << 63;
  const auto bits = std::bit_cast<std::uint64_t>(value + 0.0);  // of the two zeros the positive one
  return {.key = (bits & sign) != 0 ? bits : ~(bits | sign), .column = column};
}

/// [n] processing order: the original column quantized i-th. The GPU waits for it: a radix sort takes a quarter of the
/// time of one by comparisons.
std::vector<std::int32_t> processing_order(std::int64_t columns, ActOrder act_order, std::span<const double> diagonal) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  if (act_order == ActOrder::none) {
    return order;
  }
  require(std::ssize(diagonal) == columns,
          "column order: the diagonal of H has another length than the layer's columns");
  std::vector<Ranked> by_rank;
  by_rank.reserve(order.size());
  for (const std::int32_t column : order) {
    by_rank.push_back(ranked(diagonal[static_cast<std::size_t>(column)], column));
  }
  boost::sort::spreadsort::integer_sort(
      by_rank.begin(), by_rank.end(), [](const Ranked& column, unsigned shift) { return column.key >> shift; },
      [](const Ranked& a, const Ranked& b) { return std::pair(a.key, a.column) < std::pair(b.key, b.column); });
  std::transform(by_rank.begin(), by_rank.end(), order.begin(), [](const Ranked& column) { return column.column; });
  return order;
}

}  // namespace

ColumnOrder make_column_order(std::int64_t columns, std::int64_t group_columns, ActOrder act_order,
                              std::span<const double> diagonal) {
  require(group_columns > 0 && columns % group_columns == 0, "column order: groups do not divide the columns");
  const auto order = processing_order(columns, act_order, diagonal);
  const auto n = static_cast<std::size_t>(columns);
  ColumnOrder result{.index = std::vector<std::int32_t>(n),
                     .position = std::vector<std::int32_t>(n),
                     .factor = {std::vector<std::int32_t>(n), std::vector<std::int32_t>(n)},
                     .original = {std::vector<std::int32_t>(n), std::vector<std::int32_t>(n)}};
  for (std::size_t i = 0; i < n; ++i) {
    const auto column = static_cast<std::size_t>(order[i]);
    const std::size_t a = n - 1 - i;
    result.index[a] = order[i];
    result.position[column] = static_cast<std::int32_t>(a);
    // The number that runs through the groups.
    const auto running = static_cast<std::int64_t>(act_order == ActOrder::dynamic ? i : column);
    result.factor.group[a] = static_cast<std::int32_t>(running / group_columns);
    result.factor.member[a] = static_cast<std::int32_t>(running % group_columns);
    result.original.group[column] = result.factor.group[a];
    result.original.member[column] = result.factor.member[a];
  }
  return result;
}

DeviceOrder::DeviceOrder(Backend& backend, Stream& stream, const ColumnOrder& order) : order_(order) {
  const auto put = [&](const std::vector<std::int32_t>& values) {
    return upload(backend, stream, std::span<const std::int32_t>(values));
  };
  index_ = put(order.index);
  position_ = put(order.position);
  group_ = put(order.factor.group);
  member_ = put(order.factor.member);
  original_group_ = put(order.original.group);
  original_member_ = put(order.original.member);
}

}  // namespace gptqd::gptq
