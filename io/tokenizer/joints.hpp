#pragma once
/// @file Where a text may be cut without changing what byte-pair encoding makes of it.
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_set>

namespace gptqd::io {

/// A character of a text as the vocabulary spells it, and its length in the text in bytes.
struct Character {
  char32_t value = 0;
  std::size_t length = 0;
};

/// The pairs of neighbouring characters that occur inside the results of merges. Symbols on both sides of any other
/// pair never become one: a merge across it would give a token that holds the pair.
class Joints {
 public:
  /// Adds the pairs inside `token`. @pre valid UTF-8
  void add(std::string_view token);
  bool contains(char32_t left, char32_t right) const {
    return left < low && right < low ? low_pairs_[left * low + right] : other_pairs_.contains(key(left, right));
  }

  /// Where the part of `text` that starts at `begin` ends: at the first place that no merge reaches across.
  /// @param character_at  position -> Character
  /// @param is_known      whether a character has a token; behind one that has not, unknown ones may be waiting to be
  ///                      made one with those that follow
  /// @pre begin < text.size()
  template <class CharacterAt, class IsKnown>
  std::size_t end_of_part(std::string_view text, std::size_t begin, CharacterAt&& character_at,
                          IsKnown&& is_known) const {
    auto left = character_at(begin);
    auto position = begin + left.length;
    while (position < text.size()) {
      const auto right = character_at(position);
      if (!contains(left.value, right.value) && is_known(left.value)) {
        break;
      }
      position += right.length;
      left = right;
    }
    return position;
  }

 private:
  static constexpr std::size_t low = 0x200;  // ASCII, Latin, and all that spells bytes
  static std::uint64_t key(char32_t left, char32_t right) { return std::uint64_t{left} << 32 | right; }

  std::bitset<low * low> low_pairs_;
  std::unordered_set<std::uint64_t> other_pairs_;
};

}  // namespace gptqd::io
