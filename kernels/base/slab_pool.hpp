#pragma once
/// @file Which parts of some large pieces of memory are free: best fit, with neighbours joined.
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace gptqd {

/// Bookkeeping only: never touches the memory, so it serves any device. Not thread-safe.
///
/// Sizes are multiples of `granularity`, and so are addresses, relative to their slab.
class SlabPool {
 public:
  static constexpr std::int64_t granularity = 256;
  using Address = std::uintptr_t;

  /// A new piece of memory, wholly free.
  void add_slab(Address address, std::int64_t bytes);
  /// The smallest free range that holds `bytes` (of several the lowest); nullopt when there is none. @pre bytes > 0
  std::optional<Address> take(std::int64_t bytes);
  /// What take() gave. @throws Error (internal) for another address
  void give_back(Address address);
  /// Takes the slabs of which no part is in use out of the pool.
  std::vector<Address> remove_idle_slabs();

  /// Bytes of all slabs, and of their free parts.
  std::int64_t held_bytes() const { return held_bytes_; }
  std::int64_t free_bytes() const { return free_bytes_; }

 private:
  struct Range {
    std::int64_t bytes = 0;
    bool is_free = true;
    Address slab = 0;
  };
  using Ranges = std::map<Address, Range>;

  void join_with_next(Ranges::iterator range);

  Ranges ranges_;                                       // without gaps inside a slab
  std::set<std::pair<std::int64_t, Address>> by_size_;  // of the free ones
  std::map<Address, std::int64_t> slabs_;
  std::int64_t held_bytes_ = 0;
  std::int64_t free_bytes_ = 0;
};

}  // namespace gptqd
