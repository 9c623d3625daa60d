#include "io/tokenizer/byte_level.hpp"

#include <utility>

#include "io/tokenizer/unicode_classes.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int32_t no_token = -1;

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, 0x200> byte{};  // of a character; -1: none

  constexpr Alphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      character[b] = printable ? b : next++;
      byte[character[b]] = static_cast<int>(b);
    }
  }
};
constexpr Alphabet alphabet;

}  // namespace

char32_t byte_level_character(std::uint8_t byte) { return alphabet.character[byte]; }

std::optional<std::string> byte_level_bytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (std::size_t i = 0; i < token.size(); i += utf8_step(token, i).length) {
    const char32_t character = code_point_at(token, i);
    const int byte = character < alphabet.byte.size() ? alphabet.byte[character] : -1;
    if (byte < 0) {
      return std::nullopt;
    }
    bytes += static_cast<char>(static_cast<unsigned char>(byte));
  }
  return bytes;
}

std::string gpt2_word_pattern() {
  return fmt::format("'s|'t|'re|'ve|'m|'ll|'d| ?[{0}]+| ?[{1}]+| ?[^{2}{0}{1}]+|[{2}]+(?![^{2}])|[{2}]+",
                     unicode_letters, unicode_numbers, unicode_spaces);
}

ByteLevelBpe::ByteLevelBpe(const Vocabulary& vocabulary, MergeTable merges, const BpeOptions& options)
    : merges_(std::move(merges)), options_(options) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string token;
    append_utf8(token, alphabet.character[byte]);
    id_of_byte_[byte] = vocabulary.find(token).value_or(no_token);
  }
  if (options_.ignore_merges) {
    for (const auto& [id, token] : vocabulary.tokens()) {
      if (auto bytes = byte_level_bytes(*token)) {
        id_of_word_.emplace(*std::move(bytes), id);
      }
    }
  }
}

void ByteLevelBpe::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  constexpr std::size_t longest_cached = 32;  // bytes; longer words hardly ever come again
  constexpr std::size_t most_cached = 1 << 16;
  const bool cacheable = word.size() <= longest_cached;
  if (cacheable) {
    if (const auto known = scratch.cache.find(word); known != scratch.cache.end()) {
      ids.insert(ids.end(), known->second.begin(), known->second.end());
      return;
    }
  }
  encode_uncached(word, scratch);
  ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
  if (cacheable && scratch.cache.size() < most_cached) {
    scratch.cache.emplace(word, scratch.symbols);
  }
}

void ByteLevelBpe::encode_uncached(std::string_view word, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  if (options_.ignore_merges) {
    if (const auto whole = id_of_word_.find(word); whole != id_of_word_.end()) {
      symbols.push_back(whole->second);
      return;
    }
  }
  bool after_unknown = false;
  for (const char character : word) {
    const auto byte = static_cast<unsigned char>(character);
    const std::int32_t id = id_of_byte_[byte];
    if (id != no_token) {
      symbols.push_back(id);
    } else if (!options_.unknown) {
      throw Error(
          ErrorKind::input,
          fmt::format("the text contains the byte 0x{:02X}, for which the tokenizer has no token and no unk_token; "
                      "take the character out of the text",
                      byte));
    } else if (!(after_unknown && options_.fuse_unknown)) {
      symbols.push_back(*options_.unknown);
    }
    after_unknown = id == no_token;
  }
  merges_.merge(symbols, scratch.merging);
}

}  // namespace gptqd::io
