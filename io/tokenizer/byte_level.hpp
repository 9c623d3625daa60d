#pragma once
/// @file Byte-level BPE (GPT-2, OPT): every byte of the text is a symbol of its own.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/bpe.hpp"

namespace gptqd::io {

/// How tokenizer.json spells a byte: a printable character for each of the 256 (GPT-2's bytes_to_unicode). Printable
/// Latin-1 bytes stand for themselves, the others, in order, are U+0100, U+0101, ...: blank is "Ġ" (U+0120).
char32_t byte_level_character(std::uint8_t byte);
/// The bytes that a token spells; nullopt if one of its characters spells no byte.
std::optional<std::string> byte_level_bytes(std::string_view token);

/// The regular expression by which GPT-2 cuts a text into words, for SplitRegex:
/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::string gpt2_word_pattern();

/// Options of a tokenizer.json's BPE model.
struct BpeOptions {
  std::optional<std::int32_t> unknown;  ///< for bytes that have no token
  bool fuse_unknown = false;            ///< one such id for a run of them
  bool ignore_merges = false;           ///< a word that is a token is that token, whatever the merges give
};

/// Words (runs of bytes) to ids. Immutable: may be used from several threads at once.
class ByteLevelBpe {
 public:
  /// What one thread keeps from word to word: memory for merging, and the ids of short words seen before.
  class Scratch {
    friend class ByteLevelBpe;
    struct Hash {
      using is_transparent = void;
      std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
    };
    std::unordered_map<std::string, std::vector<std::int32_t>, Hash, std::equal_to<>> cache;
    std::vector<std::int32_t> symbols;
    MergeTable::Scratch merging;
  };

  ByteLevelBpe(const Vocabulary& vocabulary, MergeTable merges, const BpeOptions& options);

  /// Appends the ids of `word` to `ids`.
  /// @throws Error (input) for a byte without a token while there is no unknown token (Hugging Face silently drops it)
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  void encode_uncached(std::string_view word, Scratch& scratch) const;

  MergeTable merges_;
  BpeOptions options_;
  std::array<std::int32_t, 256> id_of_byte_{};                                                // -1: none
  std::unordered_map<std::string, std::int32_t, Scratch::Hash, std::equal_to<>> id_of_word_;  // with ignore_merges
};

}  // namespace gptqd::io
