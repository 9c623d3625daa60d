#pragma once
/// @file Regular expressions (PCRE2) that find all their matches in a text.
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace gptqd::io {

/// A compiled pattern. Immutable: may be used from several threads at once.
class Regex {
 public:
  using OnMatch = std::function<void(std::size_t begin, std::size_t end)>;

  /// @param pattern  PCRE2 syntax; Unicode properties apply (UTF and UCP)
  /// @param name     what messages call it; empty: the pattern itself
  /// @throws Error (input) with PCRE2's message and the place in the pattern
  explicit Regex(const std::string& pattern, std::string name = "");
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Gives the matches in order, leftmost first, none overlapping another. An empty match counts unless it stands where
  /// the match before it ends (so does Oniguruma's find_iter).
  /// @pre text is valid UTF-8
  /// @throws Error (input) if PCRE2 gives up (a pattern that explodes meets the limit of a match: 10 million steps and
  ///         four for each byte of text, 512 MiB); what `match` throws
  void for_each_match(std::string_view text, const OnMatch& match) const;

  /// Whether the pattern may match nothing at all: "a*".
  bool may_match_empty() const;

  /// `text` with every match replaced by `content`. @pre and @throws as for_each_match
  std::string replaced(std::string_view text, std::string_view content) const;

  /// Whether the pattern matches anywhere in `text`. @pre and @throws as for_each_match
  bool matches(std::string_view text) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace gptqd::io
