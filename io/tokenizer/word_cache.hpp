#pragma once
/// @file Ids of short words that were tokenized before.
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// A table of fixed size (2 MiB), one place a hash: a new word takes the place of an old one. For one thread.
class WordCache {
 public:
  static constexpr std::size_t longest_word = 30;  ///< bytes
  static constexpr std::size_t most_ids = 8;

  WordCache() : entries_(entry_count) {}

  /// A word's place in the table. @pre word.size() <= longest_word
  std::size_t place(std::string_view word) const;
  /// The ids of `word` if they are at `place`; valid until the next store().
  std::optional<std::span<const std::int32_t>> find(std::size_t place, std::string_view word) const;
  /// Does nothing with more than most_ids ids. @pre 0 < word.size() <= longest_word
  void store(std::size_t place, std::string_view word, std::span<const std::int32_t> ids);

 private:
  static constexpr std::size_t entry_count = 1 << 15;
  struct Entry {  // a line of the processor's cache
    std::uint8_t length = 0;
    std::uint8_t id_count = 0;
    std::array<char, longest_word> word{};
    std::array<std::int32_t, most_ids> ids{};
  };
  std::vector<Entry> entries_;
};

}  // namespace gptqd::io
