#pragma once
/// @file Tokens that are found in a text before anything else is done to it: "</s>", "<|im_start|>".
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/normalizer.hpp"
#include "io/tokenizer/regex.hpp"

namespace gptqd::io {

/// An entry of tokenizer.json's added_tokens.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;      ///< left out by decode(..., skip_special)
  bool normalized = false;   ///< looked for in the normalized text, after the others
  bool single_word = false;  ///< only where no word character stands beside it
  bool lstrip = false;       ///< takes the white space on its left with it
  bool rstrip = false;       ///< takes the white space on its right with it
};

/// The text that stands for `token` in a normalized text: its content, normalized if it is `normalized`.
/// @param normalizer  null: none
std::string normalized_content(const AddedToken& token, const Normalizer* normalizer);

/// Finds added tokens as Hugging Face tokenizers does. Immutable: may be used from several threads at once.
class AddedTokens {
 public:
  using OnToken = std::function<void(std::int32_t id)>;
  using OnText = std::function<void(std::string_view)>;

  /// @param normalizer  what `normalized` tokens are looked for in comes from; null: none
  /// @throws Error (input) for contents of more than 1024 bytes, of none after normalization, and for two that
  ///         are the same then
  AddedTokens(const std::vector<AddedToken>& tokens, const Normalizer* normalizer);

  /// Cuts `text`, which is not normalized yet, at the tokens that are not `normalized`; calls `token` for each and
  /// `rest` for each run between them, in order. Leftmost match, of those the longest.
  /// @pre text is valid UTF-8
  void split_raw(std::string_view text, const OnToken& token, const OnText& rest) const;
  /// Cuts one of those runs, normalized, at the other tokens.
  void split_normalized(std::string_view text, const OnToken& token, const OnText& rest) const;
  bool has_normalized() const { return !normalized_.empty(); }

 private:
  /// All contents of one pass as a trie, for the longest match at a place.
  class Matcher {
   public:
    void add(const AddedToken& token);
    bool empty() const { return tokens_.empty(); }
    void split(std::string_view text, const std::optional<Regex>& word, const OnToken& on_token,
               const OnText& rest) const;

   private:
    struct Match {
      std::size_t length = 0;
      std::size_t token = 0;
    };
    std::optional<Match> match_at(std::string_view text, std::size_t position) const;

    std::vector<AddedToken> tokens_;
    std::array<bool, 256> starts_{};                          // whether a content begins with the byte
    std::unordered_map<std::uint64_t, std::uint64_t> edges_;  // node << 8 | byte -> node
    std::unordered_map<std::uint64_t, std::size_t> token_of_node_;
  };

  Matcher raw_;
  Matcher normalized_;
  std::optional<Regex> word_;  // matches one word character; present if a token is single_word
};

}  // namespace gptqd::io
