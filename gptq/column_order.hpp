#pragma once
/// @file The order in which columns are quantized, and the groups that follow from it.
#include <cstdint>
#include <span>
#include <vector>

#include "gptq/quant_spec.hpp"
#include "kernels/backend.hpp"

namespace gptqd::gptq {

/// The group of each column, and its position inside the group.
struct GroupMap {
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
};

/// Three numberings of n columns. Original order is the checkpoint's. Processing order is the one in which columns are
/// quantized. Factor order is its reverse, so that H = L Lᵀ of the columns in factor order is H = U Uᵀ of the columns
/// in processing order (docs/numerics.md): the column quantized i-th is factor column n − 1 − i.
struct ColumnOrder {
  std::vector<std::int32_t> index;     ///< [n] factor order: the original column
  std::vector<std::int32_t> position;  ///< [n] original order: the column in factor order
  GroupMap factor;                     ///< [n] factor order
  GroupMap original;                   ///< [n] original order; original.group is the artifact's g_idx

  std::int64_t columns() const { return static_cast<std::int64_t>(index.size()); }
};

/// Natural order for ActOrder::none; else descending `diagonal`, ties by original column. Groups are runs of
/// `group_columns` in original order, for ActOrder::dynamic in processing order.
/// @param diagonal  [columns] of H, original order, without NaN; empty with ActOrder::none
/// @pre columns % group_columns == 0
ColumnOrder make_column_order(std::int64_t columns, std::int64_t group_columns, ActOrder act_order,
                              std::span<const double> diagonal);

/// Enqueues the copy of host values to a new buffer. `values` must stay in place until the stream has passed.
template <class T>
Buffer upload(Backend& backend, Stream& stream, std::span<const T> values) {
  Buffer buffer = backend.allocate(static_cast<std::int64_t>(values.size_bytes()));
  backend.copy_to_device(stream, buffer.data(), values.data(), static_cast<std::int64_t>(values.size_bytes()));
  return buffer;
}

/// The maps of a ColumnOrder on the device. The order must outlive the stream's work.
class DeviceOrder {
 public:
  DeviceOrder(Backend& backend, Stream& stream, const ColumnOrder& order);

  using Map = ConstTensorView<std::int32_t, 1>;
  const ColumnOrder& host() const { return order_; }
  std::int64_t columns() const { return order_.columns(); }
  Map index() const { return view(index_); }
  Map position() const { return view(position_); }
  Map group() const { return view(group_); }
  Map member() const { return view(member_); }
  Map original_group() const { return view(original_group_); }
  Map original_member() const { return view(original_member_); }

 private:
  Map view(const Buffer& buffer) const { return buffer.view<const std::int32_t, 1>({columns()}); }

  const ColumnOrder& order_;
  Buffer index_;
  Buffer position_;
  Buffer group_;
  Buffer member_;
  Buffer original_group_;
  Buffer original_member_;
};

}  // namespace gptqd::gptq
