#pragma once
/// @file The columns of each group, listed on the device.
#include <string>
#include <string_view>

#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// Columns of group g in the order of their members: columns[begin[g]] ... columns[begin[g + 1] − 1].
struct GroupLists {
  const std::int32_t* begin = nullptr;    // [groups + 1]
  const std::int32_t* columns = nullptr;  // [n]
};

/// Bytes of device memory that list_groups() takes.
std::int64_t group_list_bytes(std::int64_t n, std::int64_t groups);

/// Enqueues the listing into `memory`. Every entry of the lists is a column of [0, n), whatever the arguments hold.
///
/// Makes the stream fail (Error internal) unless groups lie in [0, groups), the members of a group of k columns are
/// 0 ... k − 1, and no group has more than `room` columns.
/// @param group   [n]
/// @param member  [n], or [0]: columns in ascending order
/// @param too_large  what to say of a group without room, given its columns
GroupLists list_groups(CudaStream& stream, ConstTensorView<std::int32_t, 1> group,
                       ConstTensorView<std::int32_t, 1> member, std::int64_t groups, std::int64_t room,
                       std::string_view operation, std::function<std::string(std::int64_t)> too_large, void* memory);

}  // namespace gptqd::cuda
