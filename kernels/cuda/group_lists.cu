#include <limits>

#include "kernels/cuda/group_lists.cuh"

namespace gptqd::cuda {

namespace {

constexpr int list_threads = 1024;
constexpr std::int32_t nothing = std::numeric_limits<std::int32_t>::max();

/// What list_columns() works on.
struct Listing {
  const std::int32_t* group;
  const std::int32_t* member;  // null: ascending columns
  std::int64_t n;
  std::int64_t groups;
  std::int64_t room;
  std::int32_t* begin;    // [groups + 1]
  std::int32_t* next;     // [groups]
  std::int32_t* columns;  // [n]
  Finding* wrong_member;
  Finding* too_large;

  __device__ bool has_group(std::int64_t c) const { return group[c] >= 0 && group[c] < groups; }
};

/// body(column) for each column, a block's threads side by side.
template <class Body>
__device__ void for_columns(std::int64_t n, const Body& body) {
  for (std::int64_t c = threadIdx.x; c < n; c += list_threads) {
    body(c);
  }
  __syncthreads();
}

/// Counts become where groups begin.
__device__ void sum_counts(const Listing& lists) {
  __shared__ std::int32_t sums[list_threads];
  const std::int64_t share = (lists.groups + list_threads - 1) / list_threads;
  const std::int64_t first = threadIdx.x * share;
  const std::int64_t last = min(lists.groups, first + share);
  std::int32_t sum = 0;
  for (std::int64_t g = first; g < last; ++g) {
    sum += lists.begin[g + 1];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    std::int32_t total = 0;
    for (std::int64_t thread = 0; thread < min(lists.groups, std::int64_t{list_threads}); ++thread) {
      total += sums[thread];
      sums[thread] = total - sums[thread];
    }
  }
  __syncthreads();
  sum = sums[threadIdx.x];
  for (std::int64_t g = first; g < last; ++g) {
    lists.next[g] = sum;
    sum += lists.begin[g + 1];
    lists.begin[g + 1] = sum;
  }
  __syncthreads();
}

/// Places columns in ascending order: a chunk of columns at a time, each counts those of its group before it.
__device__ void place_ascending(const Listing& lists) {
  __shared__ std::int32_t chunk[list_threads];
  for (std::int64_t first = 0; first < lists.n; first += list_threads) {
    const std::int64_t c = first + threadIdx.x;
    const std::int32_t g = c < lists.n && lists.has_group(c) ? lists.group[c] : -1;
    chunk[threadIdx.x] = g;
    __syncthreads();
    if (g >= 0) {
      std::int32_t place = lists.next[g];
      for (unsigned int before = 0; before < threadIdx.x; ++before) {
        place += chunk[before] == g ? 1 : 0;
      }
      lists.columns[place] = static_cast<std::int32_t>(c);
    }
    __syncthreads();
    if (g >= 0) {
      atomicAdd(&lists.next[g], 1);  // a count: the same in any order
    }
    __syncthreads();
  }
}

/// Places columns by member. Of several at one place the first stays; the others, and members outside, are wrong.
__device__ void place_by_member(const Listing& lists) {
  const auto place_of = [&](std::int64_t c) -> std::int64_t {
    const std::int32_t g = lists.group[c];
    const std::int64_t place = std::int64_t{lists.begin[g]} + lists.member[c];
    return lists.member[c] >= 0 && place < lists.begin[g + 1] ? place : -1;
  };
  for_columns(lists.n, [&](std::int64_t c) {
    if (lists.has_group(c) && place_of(c) >= 0) {
      atomicMin(&lists.columns[place_of(c)], static_cast<std::int32_t>(c));
    }
  });
  std::int64_t wrong = lists.n;
  for_columns(lists.n, [&](std::int64_t c) {
    if (lists.has_group(c) && c < wrong && (place_of(c) < 0 || lists.columns[place_of(c)] != c)) {
      wrong = c;
    }
  });
  wrong = reduce<list_threads>(wrong, Minimum{});
  if (threadIdx.x == 0 && wrong < lists.n) {
    lists.wrong_member->value = (std::int64_t{lists.member[wrong]} << 32) | lists.group[wrong];
    lists.wrong_member->position = wrong;
  }
}

/// One block.
__global__ void __launch_bounds__(list_threads) list_columns(Listing lists) {
  for (std::int64_t g = threadIdx.x; g <= lists.groups; g += list_threads) {
    lists.begin[g] = 0;
  }
  for_columns(lists.n, [&](std::int64_t c) { lists.columns[c] = nothing; });
  for_columns(lists.n, [&](std::int64_t c) {
    if (lists.has_group(c)) {
      atomicAdd(&lists.begin[lists.group[c] + 1], 1);
    }
  });
  std::int64_t largest = 0;
  for (std::int64_t g = threadIdx.x; g < lists.groups; g += list_threads) {
    largest = max(largest, std::int64_t{lists.begin[g + 1]});
  }
  largest = -reduce<list_threads>(-largest, Minimum{});
  if (threadIdx.x == 0 && largest > lists.room) {
    lists.too_large->value = largest;
    lists.too_large->position = 0;
  }
  sum_counts(lists);
  if (lists.member == nullptr) {
    place_ascending(lists);
  } else {
    place_by_member(lists);
  }
  for_columns(lists.n, [&](std::int64_t c) {
    if (lists.columns[c] == nothing) {
      lists.columns[c] = 0;
    }
  });
}

}  // namespace

std::int64_t group_list_bytes(std::int64_t n, std::int64_t groups) {
  return (2 * groups + 1 + n) * static_cast<std::int64_t>(sizeof(std::int32_t));
}

GroupLists list_groups(CudaStream& stream, ConstTensorView<std::int32_t, 1> group,
                       ConstTensorView<std::int32_t, 1> member, std::int64_t groups, std::int64_t room,
                       std::string_view operation, std::function<std::string(std::int64_t)> too_large, void* memory) {
  expect_inside(stream, group, 0, groups, [operation = std::string(operation), groups](const Finding& found) {
    return fmt::format("{}: group[{}] = {}, expected an index in [0, {})", operation, found.position, found.value,
                       groups);
  });
  Listing lists{};
  lists.group = group.data;
  lists.member = member.rows() > 0 ? member.data : nullptr;
  lists.n = group.rows();
  lists.groups = groups;
  lists.room = room;
  lists.begin = static_cast<std::int32_t*>(memory);
  lists.next = lists.begin + groups + 1;
  lists.columns = lists.next + groups;
  lists.wrong_member = stream.expect_no_finding([operation = std::string(operation)](const Finding& found) {
    return fmt::format("{}: column {} is member {} of group {}, expected each place of a group once", operation,
                       found.position, found.value >> 32, found.value & 0xffffffff);
  });
  lists.too_large = stream.expect_no_finding(
      [too_large = std::move(too_large)](const Finding& found) { return too_large(found.value); });
  list_columns<<<1, list_threads, 0, stream.stream()>>>(lists);
  return {lists.begin, lists.columns};
}

}  // namespace gptqd::cuda
