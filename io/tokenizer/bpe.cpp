#include "io/tokenizer/bpe.hpp"

#include <algorithm>
#include <utility>

#include "io/tokenizer/byte_alphabet.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int32_t no_token = -1;
constexpr char32_t low_characters = 0x3000;  // of most alphabets, and U+2581
constexpr std::size_t longest_part = std::size_t{1} << 27;

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, const BpeOptions& options)
    : vocabulary_(std::move(vocabulary)), options_(options), low_ids_(low_characters, no_token) {
  for (const auto& [id, token] : vocabulary_.tokens()) {
    if (token->empty() || utf8_step(*token, 0).length != token->size()) {
      continue;
    }
    const auto character = code_point_at(*token, 0);
    if (character < low_characters) {
      low_ids_[character] = id;
    } else {
      other_ids_.emplace(character, id);
    }
  }
  fallback_ids_.fill(no_token);
  if (options_.byte_fallback) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      fallback_ids_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(no_token);
    }
  }
  if (options_.ignore_merges && options_.byte_level) {
    for (const auto& [id, token] : vocabulary_.tokens()) {
      if (auto bytes = byte_level_bytes(*token)) {
        id_of_bytes_.emplace(*std::move(bytes), id);
      }
    }
  }
  // These ids stand for other characters than their spelling's: where merges take part, spelling tells nothing.
  const auto misspelled = [this](std::int32_t id) {
    return id == options_.unknown || std::find(fallback_ids_.begin(), fallback_ids_.end(), id) != fallback_ids_.end();
  };
  for (const auto& merge : merges) {
    cuts_ = cuts_ && !misspelled(merge.left) && !misspelled(merge.right) && !misspelled(merge.result);
    joints_.add(*vocabulary_.token(merge.result));
  }
  merges_ = MergeTable(merges, cuts_);
}

void Bpe::Scratch::shrink() {
  merging.shrink();
  if (symbols.capacity() > (1 << 16)) {
    symbols = {};
  }
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (word.empty()) {
    return;
  }
  if (word.size() <= WordCache::longest_word) {
    encode_cached(word, scratch, ids);
    return;
  }
  if (const auto whole = id_of_whole(word)) {
    ids.push_back(*whole);
    return;
  }
  for (std::size_t begin = 0; begin < word.size();) {
    const auto end = cuts_ ? joints_.end_of_part(
                                 word, begin, [&](std::size_t position) { return character_at(word, position); },
                                 [&](char32_t character) { return id_of(character).has_value(); })
                           : word.size();
    const auto part = word.substr(begin, end - begin);
    // With ignore_merges the cache holds whole words, which may have other ids than the same text inside a word.
    if (part.size() <= WordCache::longest_word && !options_.ignore_merges) {
      encode_cached(part, scratch, ids);
    } else {
      merge_part(part, scratch);
      ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
    }
    begin = end;
  }
}

void Bpe::encode_cached(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  const auto place = scratch.cache.place(word);
  if (const auto known = scratch.cache.find(place, word)) {
    ids.insert(ids.end(), known->begin(), known->end());
    return;
  }
  if (const auto whole = id_of_whole(word)) {
    scratch.symbols.assign(1, *whole);
  } else {
    merge_part(word, scratch);
  }
  ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
  scratch.cache.store(place, word, scratch.symbols);
}

Character Bpe::character_at(std::string_view word, std::size_t position) const {
  if (options_.byte_level) {
    return {byte_level_character(static_cast<std::uint8_t>(word[position])), 1};
  }
  return {code_point_at(word, position), utf8_step(word, position).length};
}

std::optional<std::int32_t> Bpe::id_of(char32_t character) const {
  if (character < low_characters) {
    return low_ids_[character] == no_token ? std::nullopt : std::optional(low_ids_[character]);
  }
  const auto found = other_ids_.find(character);
  return found == other_ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::int32_t> Bpe::id_of_whole(std::string_view word) const {
  if (!options_.ignore_merges) {
    return std::nullopt;
  }
  if (!options_.byte_level) {
    return vocabulary_.find(word);
  }
  const auto found = id_of_bytes_.find(word);
  return found == id_of_bytes_.end() ? std::nullopt : std::optional(found->second);
}

void Bpe::merge_part(std::string_view part, Scratch& scratch) const {
  scratch.symbols.clear();
  append_symbols(part, scratch.symbols);
  merges_.merge(scratch.symbols, scratch.merging);
}

void Bpe::append_symbols(std::string_view part, std::vector<std::int32_t>& symbols) const {
  // An unknown character waits for the next one that has a token; tokens of bytes overtake it, as in the reference.
  bool waiting = false;
  std::size_t character_count = 0;
  for (std::size_t position = 0; position < part.size();) {
    const auto character = character_at(part, position);
    position += character.length;
    if (++character_count >= longest_part) {
      throw Error(ErrorKind::input,
                  fmt::format("a word of {} bytes has no place where it could be cut before its character {}; break "
                              "the text up with blanks or line ends",
                              part.size(), character_count));
    }
    if (const auto id = id_of(character.value)) {
      if (waiting) {
        symbols.push_back(*options_.unknown);
        waiting = false;
      }
      symbols.push_back(*id);
      continue;
    }
    if (options_.byte_fallback && append_fallback(character.value, symbols)) {
      continue;
    }
    if (!options_.unknown) {
      throw Error(
          ErrorKind::input,
          options_.byte_level
              ? fmt::format("the text contains the byte 0x{:02X}, for which the tokenizer has no token and no "
                            "unk_token; take the character out of the text",
                            static_cast<unsigned char>(part[position - 1]))
              : fmt::format("the text contains the character U+{:04X}, for which the tokenizer has no token and "
                            "no unk_token; take it out of the text",
                            static_cast<std::uint32_t>(character.value)));
    }
    if (waiting && !options_.fuse_unknown) {
      symbols.push_back(*options_.unknown);
    }
    waiting = true;
  }
  if (waiting) {
    symbols.push_back(*options_.unknown);
  }
}

bool Bpe::append_fallback(char32_t character, std::vector<std::int32_t>& symbols) const {
  std::string bytes;
  append_utf8(bytes, character);
  const auto id_of_byte = [this](char byte) { return fallback_ids_[static_cast<unsigned char>(byte)]; };
  if (std::any_of(bytes.begin(), bytes.end(), [&](char byte) { return id_of_byte(byte) == no_token; })) {
    return false;
  }
  for (const char byte : bytes) {
    symbols.push_back(id_of_byte(byte));
  }
  return true;
}

}  // namespace gptqd::io
