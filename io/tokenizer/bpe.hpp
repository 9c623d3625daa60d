#pragma once
/// @file Byte-pair encoding over token ids: the vocabulary and the merges.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gptqd::io {

/// Tokens as tokenizer.json spells them, and their ids.
class Vocabulary {
 public:
  /// @throws Error (input) if the id is negative, or the token or id is there already
  void add(std::string token, std::int32_t id);

  std::optional<std::int32_t> find(std::string_view token) const;
  /// Null for an id without a token.
  const std::string* token(std::int32_t id) const;
  std::int64_t size() const { return static_cast<std::int64_t>(ids_.size()); }
  /// The largest id plus one.
  std::int64_t id_bound() const { return id_bound_; }
  const std::unordered_map<std::int32_t, const std::string*>& tokens() const { return tokens_; }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::unordered_map<std::int32_t, const std::string*> tokens_;  // into ids_, whose keys never move
  std::int64_t id_bound_ = 0;
};

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
    friend class MergeTable;
    struct Symbol {
      std::int32_t id = 0;
      std::int32_t previous = 0;
      std::int32_t next = 0;
    };
    struct Candidate {
      std::int32_t rank = 0;
      std::int32_t position = 0;
      std::int32_t result = 0;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  MergeTable() = default;
  /// Of a pair that occurs twice the later one counts, as in Hugging Face tokenizers.
  explicit MergeTable(const std::vector<Merge>& merges);

  /// Merges adjacent symbols, lowest rank first, of equal ranks the leftmost first, until no pair has a merge.
  /// n symbols take O(n log n). Steps and ties are those of Hugging Face tokenizers (Word::merge_all).
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

  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  int shift_ = 0;
};

}  // namespace gptqd::io
