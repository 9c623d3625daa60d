#include "io/tokenizer/word_cache.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace gptqd::io {

std::size_t WordCache::place(std::string_view word) const {
  return XXH3_64bits(word.data(), word.size()) & (entry_count - 1);
}

std::optional<std::span<const std::int32_t>> WordCache::find(std::size_t place, std::string_view word) const {
  const auto& entry = entries_[place];
  if (entry.length != word.size() || std::memcmp(entry.word.data(), word.data(), word.size()) != 0) {
    return std::nullopt;
  }
  return std::span(entry.ids).first(entry.id_count);
}

void WordCache::store(std::size_t place, std::string_view word, std::span<const std::int32_t> ids) {
  if (ids.size() > most_ids) {
    return;
  }
  auto& entry = entries_[place];
  entry.length = static_cast<std::uint8_t>(word.size());
  entry.id_count = static_cast<std::uint8_t>(ids.size());
  std::copy(word.begin(), word.end(), entry.word.begin());
  std::copy(ids.begin(), ids.end(), entry.ids.begin());
}

}  // namespace gptqd::io
