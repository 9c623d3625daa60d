#pragma once
/// @file The BPE model: words to ids.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/joints.hpp"
#include "io/tokenizer/merge_table.hpp"
#include "io/tokenizer/vocabulary.hpp"
#include "io/tokenizer/word_cache.hpp"

namespace gptqd::io {

/// Options of a tokenizer.json's BPE model.
struct BpeOptions {
  bool byte_level = false;              ///< symbols are bytes as byte_level_character() spells them, else characters
  std::optional<std::int32_t> unknown;  ///< for characters that have no token
  bool fuse_unknown = false;            ///< one such id for a run of them
  bool byte_fallback = false;           ///< a character without a token becomes its bytes' tokens, <0x00> to <0xFF>
  bool ignore_merges = false;           ///< a word that is a token is that token, whatever the merges give
};

/// Immutable: may be used from several threads at once.
class Bpe {
 public:
  /// What one thread keeps from word to word.
  class Scratch {
   public:
    /// Gives up what a huge word has taken.
    void shrink();

   private:
    friend class Bpe;
    WordCache cache;
    std::vector<std::int32_t> symbols;
    MergeTable::Scratch merging;
  };

  Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, const BpeOptions& options);

  const Vocabulary& vocabulary() const { return vocabulary_; }

  /// Appends the ids of `word` to `ids`. Words of more than 30 bytes are first cut where no merge reaches across, which
  /// changes nothing; what cannot be cut takes memory of about 32 times its length.
  /// @pre valid UTF-8
  /// @throws Error (input) for a character without a token while there is no unknown token (Hugging Face silently drops
  ///         it), and for 2^27 characters (bytes, if byte-level) that cannot be cut
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  Character character_at(std::string_view word, std::size_t position) const;
  std::optional<std::int32_t> id_of(char32_t character) const;
  std::optional<std::int32_t> id_of_whole(std::string_view word) const;
  void encode_cached(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void merge_part(std::string_view part, Scratch& scratch) const;
  void append_symbols(std::string_view part, std::vector<std::int32_t>& symbols) const;
  bool append_fallback(char32_t character, std::vector<std::int32_t>& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  MergeTable merges_;
  Joints joints_;
  bool cuts_ = true;                                      // whether joints_ tells where to cut
  std::vector<std::int32_t> low_ids_;                     // of characters below its size; -1: none
  std::unordered_map<char32_t, std::int32_t> other_ids_;  // of the other characters
  std::array<std::int32_t, 256> fallback_ids_{};          // of <0x00>, ...; -1: none
  std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>> id_of_bytes_;  // with ignore_merges
};

}  // namespace gptqd::io
