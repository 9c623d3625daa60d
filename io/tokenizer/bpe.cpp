#include "io/tokenizer/bpe.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

constexpr std::int32_t none = -1;     // no symbol on that side
constexpr std::int32_t removed = -1;  // id of a symbol that was merged into the one on its left

}  // namespace

void Vocabulary::add(std::string token, std::int32_t id) {
  if (id < 0) {
    throw Error(ErrorKind::input, fmt::format("token \"{}\" has the id {}; ids start at 0", token, id));
  }
  if (const auto other = tokens_.find(id); other != tokens_.end()) {
    throw Error(ErrorKind::input,
                fmt::format("tokens \"{}\" and \"{}\" both have the id {}", *other->second, token, id));
  }
  const auto [entry, is_new] = ids_.try_emplace(std::move(token), id);
  if (!is_new) {
    throw Error(ErrorKind::input, fmt::format("token \"{}\" has two ids, {} and {}", entry->first, entry->second, id));
  }
  tokens_.emplace(id, &entry->first);
  id_bound_ = std::max(id_bound_, std::int64_t{id} + 1);
}

std::optional<std::int32_t> Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const std::string* Vocabulary::token(std::int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : found->second;
}

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  require(merges.size() < std::size_t{1} << 30, "merge table: more than 2^30 merges");
  const std::size_t slots = std::bit_ceil(2 * merges.size() + 2);
  shift_ = 64 - std::countr_zero(slots);
  slots_.resize(slots);
  std::int32_t rank = 0;
  for (const auto& merge : merges) {
    const auto pair = pair_of(merge.left, merge.right);
    std::size_t i = first_slot(pair);
    while (slots_[i].result >= 0 && slots_[i].pair != pair) {
      i = (i + 1) & (slots - 1);
    }
    slots_[i] = {pair, rank++, merge.result};
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
  require(symbols.size() < static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
          "merge table: a piece of 2^31 symbols or more");
  const auto count = static_cast<std::int32_t>(symbols.size());
  auto& list = scratch.symbols;
  auto& heap = scratch.heap;
  const auto at = [&list](std::int32_t i) -> Scratch::Symbol& { return list[static_cast<std::size_t>(i)]; };
  const auto after = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return std::pair(a.rank, a.position) > std::pair(b.rank, b.position);
  };

  list.clear();
  heap.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    const auto id = symbols[static_cast<std::size_t>(i)];
    list.push_back({id, i - 1, i + 1 < count ? i + 1 : none});
    if (i > 0) {
      if (const auto* merge = find(at(i - 1).id, id)) {
        heap.push_back({merge->rank, i - 1, merge->result});
      }
    }
  }
  std::make_heap(heap.begin(), heap.end(), after);
  const auto push = [&](std::int32_t position) {
    if (const auto* merge = find(at(position).id, at(at(position).next).id)) {
      heap.push_back({merge->rank, position, merge->result});
      std::push_heap(heap.begin(), heap.end(), after);
    }
  };

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const auto candidate = heap.back();
    heap.pop_back();
    auto& left = at(candidate.position);
    if (left.id == removed || left.next == none) {
      continue;
    }
    auto& right = at(left.next);
    // A candidate is out of date when its symbols have changed; the reference looks at the result alone.
    const auto* merge = find(left.id, right.id);
    if (merge == nullptr || merge->result != candidate.result) {
      continue;
    }
    left.id = candidate.result;
    left.next = right.next;
    right.id = removed;
    if (left.next != none) {
      at(left.next).previous = candidate.position;
      push(candidate.position);
    }
    if (left.previous != none) {
      push(left.previous);
    }
  }

  symbols.clear();
  for (std::int32_t i = 0; i != none; i = at(i).next) {
    symbols.push_back(at(i).id);
  }
}

}  // namespace gptqd::io
