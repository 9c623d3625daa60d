#include "kernels/base/slab_pool.hpp"

#include "kernels/base/error.hpp"

namespace gptqd {

void SlabPool::add_slab(Address address, std::int64_t bytes) {
  require(bytes > 0 && bytes % granularity == 0, fmt::format("slab pool: got a slab of {} bytes", bytes));
  require(ranges_.emplace(address, Range{.bytes = bytes, .is_free = true, .slab = address}).second,
          "slab pool: got a slab twice");
  by_size_.emplace(bytes, address);
  slabs_.emplace(address, bytes);
  held_bytes_ += bytes;
  free_bytes_ += bytes;
}

std::optional<SlabPool::Address> SlabPool::take(std::int64_t bytes) {
  const std::int64_t wanted = (bytes + granularity - 1) / granularity * granularity;
  const auto found = by_size_.lower_bound({wanted, 0});
  if (found == by_size_.end()) {
    return std::nullopt;
  }
  const Address address = found->second;
  Range& range = ranges_.at(address);
  if (range.bytes > wanted) {
    const Address rest = address + static_cast<Address>(wanted);
    ranges_.emplace(rest, Range{.bytes = range.bytes - wanted, .is_free = true, .slab = range.slab});
    by_size_.emplace(range.bytes - wanted, rest);
  }
  by_size_.erase(found);
  range.bytes = wanted;
  range.is_free = false;
  free_bytes_ -= wanted;
  return address;
}

void SlabPool::give_back(Address address) {
  auto range = ranges_.find(address);
  require(range != ranges_.end() && !range->second.is_free, "slab pool: got back memory that was not taken from it");
  range->second.is_free = true;
  free_bytes_ += range->second.bytes;
  join_with_next(range);
  if (range != ranges_.begin() && std::prev(range)->second.is_free &&
      std::prev(range)->second.slab == range->second.slab) {
    --range;
    by_size_.erase({range->second.bytes, range->first});
    join_with_next(range);
  }
  by_size_.emplace(range->second.bytes, range->first);
}

void SlabPool::join_with_next(Ranges::iterator range) {
  const auto next = std::next(range);
  if (next != ranges_.end() && next->second.is_free && next->second.slab == range->second.slab) {
    by_size_.erase({next->second.bytes, next->first});
    range->second.bytes += next->second.bytes;
    ranges_.erase(next);
  }
}

std::vector<SlabPool::Address> SlabPool::remove_idle_slabs() {
  std::vector<Address> removed;
  for (auto slab = slabs_.begin(); slab != slabs_.end();) {
    const auto [address, bytes] = *slab;
    const auto range = ranges_.find(address);
    if (range->second.is_free && range->second.bytes == bytes) {
      removed.push_back(address);
      by_size_.erase({bytes, address});
      ranges_.erase(range);
      held_bytes_ -= bytes;
      free_bytes_ -= bytes;
      slab = slabs_.erase(slab);
    } else {
      ++slab;
    }
  }
  return removed;
}

}  // namespace gptqd
