#pragma once
/// @file A regular expression that cuts a text into pieces (PCRE2).
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace gptqd::io {

/// Cuts texts at the matches of a pattern. Immutable: may be used from several threads at once.
class SplitRegex {
 public:
  using Piece = std::function<void(std::string_view)>;

  /// @param pattern  PCRE2 syntax; Unicode properties apply (UTF and UCP)
  /// @throws Error (input) with PCRE2's message and the place in the pattern
  explicit SplitRegex(std::string pattern);
  ~SplitRegex();
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;

  /// Gives `piece` every match and every run of text between matches, in order; they make up `text` (the behaviour
  /// "Isolated" of Hugging Face's Split). Empty matches cut nothing.
  /// @pre text is valid UTF-8
  /// @throws Error (input) if PCRE2 gives up (its match limit); what `piece` throws
  void for_each_piece(std::string_view text, const Piece& piece) const;

  /// Whether the pattern matches anywhere in `text`. @pre and @throws as for_each_piece
  bool matches(std::string_view text) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace gptqd::io
