#include "gptq/column_order.hpp"

#include <algorithm>
#include <numeric>

namespace gptqd::gptq {

namespace {

/// [n] processing order: the original column quantized i-th.
std::vector<std::int32_t> processing_order(std::int64_t columns, ActOrder act_order, std::span<const double> diagonal) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  if (act_order != ActOrder::none) {
    require(std::ssize(diagonal) == columns,
            "column order: the diagonal of H has another length than the layer's columns");
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
    });
  }
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
