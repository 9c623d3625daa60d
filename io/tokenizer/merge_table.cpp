#include "io/tokenizer/merge_table.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

constexpr std::int32_t none = -1;     // no symbol on that side
constexpr std::int32_t removed = -1;  // id of a symbol that was merged into the one on its left
constexpr std::int32_t no_rank = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t longest_short = 40;  // up to here looking at every rank costs less than a heap

std::size_t index(std::int32_t i) { return static_cast<std::size_t>(i); }

}  // namespace

void MergeTable::Scratch::shrink() {
  constexpr std::size_t worth_keeping = 1 << 16;
  if (symbols.capacity() > worth_keeping || heap.capacity() > worth_keeping) {
    symbols = {};
    heap = {};
  }
}

MergeTable::MergeTable(const std::vector<Merge>& merges, bool lengths_fixed) : lengths_fixed_(lengths_fixed) {
  require(merges.size() < std::size_t{1} << 30, "merge table: more than 2^30 merges");
  const std::size_t slots = std::bit_ceil(2 * merges.size() + 2);
  shift_ = 64 - std::countr_zero(slots);
  slots_.resize(slots);
  result_of_rank_.reserve(merges.size());
  for (const auto& merge : merges) {
    const auto pair = pair_of(merge.left, merge.right);
    std::size_t i = first_slot(pair);
    while (slots_[i].result >= 0 && slots_[i].pair != pair) {
      i = (i + 1) & (slots - 1);
    }
    slots_[i] = {pair, static_cast<std::int32_t>(result_of_rank_.size()), merge.result};
    result_of_rank_.push_back(merge.result);
  }
}

// Fibonacci hashing: the product's high bits depend on all bits of the pair.
std::size_t MergeTable::first_slot(std::uint64_t pair) const { return (pair * 0x9e3779b97f4a7c15u) >> shift_; }

const MergeTable::Slot* MergeTable::find(std::int32_t left, std::int32_t right) const {
  const auto pair = pair_of(left, right);
  for (std::size_t i = first_slot(pair); slots_[i].result >= 0; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].pair == pair) {
      return &slots_[i];
    }
  }
  return nullptr;
}

void MergeTable::merge(std::vector<std::int32_t>& symbols, Scratch& scratch) const {
  if (symbols.size() < 2 || slots_.empty()) {
    return;
  }
  if (lengths_fixed_ && symbols.size() <= longest_short) {
    merge_short(symbols, scratch);
  } else {
    merge_long(symbols, scratch);
  }
}

void MergeTable::merge_short(std::vector<std::int32_t>& symbols, Scratch& scratch) const {
  auto& ranks = scratch.ranks;  // of the pair that starts at each symbol
  const auto rank_at = [&](std::size_t i) {
    const auto* merge = i + 1 < symbols.size() ? find(symbols[i], symbols[i + 1]) : nullptr;
    return merge == nullptr ? no_rank : merge->rank;
  };
  ranks.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    ranks.push_back(rank_at(i));
  }
  while (true) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == no_rank) {
      return;
    }
    const auto i = static_cast<std::size_t>(best - ranks.begin());
    symbols[i] = result_of_rank_[index(*best)];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(best + 1);
    ranks[i] = rank_at(i);
    if (i > 0) {
      ranks[i - 1] = rank_at(i - 1);
    }
  }
}

void MergeTable::merge_long(std::vector<std::int32_t>& symbols, Scratch& scratch) const {
  require(symbols.size() < index(std::numeric_limits<std::int32_t>::max()),
          "merge table: a piece of 2^31 symbols or more");
  const auto count = static_cast<std::int32_t>(symbols.size());
  auto& list = scratch.symbols;
  auto& heap = scratch.heap;
  const auto at = [&list](std::int32_t i) -> Scratch::Symbol& { return list[index(i)]; };
  const auto add_candidate = [&](std::int32_t position) {
    const auto* merge = find(at(position).id, at(at(position).next).id);
    if (merge != nullptr) {
      heap.push_back(pair_of(merge->rank, position));
    }
    return merge != nullptr;
  };
  const std::greater<> after;

  list.clear();
  heap.clear();
  list.reserve(symbols.size());
  for (std::int32_t i = 0; i < count; ++i) {
    list.push_back({symbols[index(i)], i - 1, i + 1 < count ? i + 1 : none});
  }
  for (std::int32_t i = 0; i + 1 < count; ++i) {
    add_candidate(i);
  }
  std::make_heap(heap.begin(), heap.end(), after);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const auto position = static_cast<std::int32_t>(heap.back() & 0xffffffffu);
    const auto result = result_of_rank_[heap.back() >> 32];
    heap.pop_back();
    auto& left = at(position);
    if (left.id == removed || left.next == none) {
      continue;
    }
    auto& right = at(left.next);
    // A candidate is out of date when its symbols have changed; the reference looks at the result alone.
    const auto* merge = find(left.id, right.id);
    if (merge == nullptr || merge->result != result) {
      continue;
    }
    left.id = result;
    left.next = right.next;
    right.id = removed;
    if (left.next != none) {
      at(left.next).previous = position;
      if (add_candidate(position)) {
        std::push_heap(heap.begin(), heap.end(), after);
      }
    }
    if (left.previous != none && add_candidate(left.previous)) {
      std::push_heap(heap.begin(), heap.end(), after);
    }
  }

  symbols.clear();
  for (std::int32_t i = 0; i != none; i = at(i).next) {
    symbols.push_back(at(i).id);
  }
}

}  // namespace gptqd::io
