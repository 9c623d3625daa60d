#pragma once
/// @file The merges of byte-pair encoding, over token ids.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gptqd::io {

/// "left right becomes result".
struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t result = 0;
};

/// The merges of a BPE model, ranked by their place in the list (0 first).
class MergeTable {
 public:
  /// Memory that merge() uses again from call to call.
  class Scratch {
   public:
    /// Gives up what a huge word has taken.
    void shrink();

   private:
    friend class MergeTable;
    struct Symbol {
      std::int32_t id = 0;
      std::int32_t previous = 0;
      std::int32_t next = 0;
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> heap;  // rank << 32 | position
    std::vector<std::int32_t> ranks;
  };

  MergeTable() = default;
  /// Of a pair that occurs twice the later one counts, as in Hugging Face tokenizers.
  /// @param lengths_fixed  every id stands for a text of one length. Else an outdated entry of Hugging Face's queue may
  ///                       be carried out after all, and short words take the way of long ones, which does that too
  explicit MergeTable(const std::vector<Merge>& merges, bool lengths_fixed = true);

  /// Merges adjacent symbols, lowest rank first, of equal ranks the leftmost first, until no pair has a merge.
  /// n symbols take O(n log n) time and about 32 n bytes. Steps and ties are those of Hugging Face tokenizers
  /// (Word::merge_all).
  /// @pre symbols.size() < 2^31
  void merge(std::vector<std::int32_t>& symbols, Scratch& scratch) const;

 private:
  /// One slot of an open hash table; result < 0 marks an empty one.
  struct Slot {
    std::uint64_t pair = 0;
    std::int32_t rank = 0;
    std::int32_t result = -1;
  };
  const Slot* find(std::int32_t left, std::int32_t right) const;
  std::size_t first_slot(std::uint64_t pair) const;
  void merge_short(std::vector<std::int32_t>& symbols, Scratch& scratch) const;
  void merge_long(std::vector<std::int32_t>& symbols, Scratch& scratch) const;

  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  std::vector<std::int32_t> result_of_rank_;
  int shift_ = 0;
  bool lengths_fixed_ = true;
};

}  // namespace gptqd::io
