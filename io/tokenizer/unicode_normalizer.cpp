#include "io/tokenizer/unicode_normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "io/tokenizer/unicode_tables.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

/// Whether nothing before `character` has to do with what it and its followers become, in any form: it is a starter,
/// stays as it is, and composes with nothing before it.
bool starts_afresh(char32_t character) {
  return character < 0x80 || (character >= 0x3400 && character <= 0x9fff);  // ASCII, Han
}

utf8proc_propval_t combining_class(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

/// The canonical ordering: runs of marks by combining class. utf8proc's own takes the square of a run's length.
void order_marks(std::vector<std::int32_t>& characters) {
  for (auto begin = characters.begin(); begin != characters.end();) {
    begin = std::find_if(begin, characters.end(), [](auto c) { return combining_class(c) != 0; });
    const auto end = std::find_if(begin, characters.end(), [](auto c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

}  // namespace

std::optional<NormalForm> normal_form(std::string_view name) {
  if (name == "NFC" || name == "NFD") {
    return NormalForm{.compose = name == "NFC", .compatibility = false};
  }
  if (name == "NFKC" || name == "NFKD") {
    return NormalForm{.compose = name == "NFKC", .compatibility = true};
  }
  return std::nullopt;
}

void UnicodeNormalizer::normalize(std::string& text) const {
  if (skip_ascii(text, 0) == text.size()) {
    return;
  }
  std::string result;
  result.reserve(text.size());
  std::vector<std::int32_t> characters;
  std::size_t done = 0;
  while (true) {
    auto position = skip_ascii(text, done);
    if (position == text.size()) {
      break;
    }
    if (position > done) {
      --position;  // the last of the ASCII characters may compose with what follows
    }
    result.append(text, done, position - done);
    auto end = position + utf8_step(text, position).length;
    while (end < text.size() && !starts_afresh(code_point_at(text, end))) {
      end += utf8_step(text, end).length;
    }
    append_normalized(std::string_view(text).substr(position, end - position), result, characters);
    done = end;
  }
  text = result.append(text, done);
}

void UnicodeNormalizer::append_normalized(std::string_view part, std::string& result,
                                          std::vector<std::int32_t>& characters) const {
  constexpr std::size_t longest_decomposition = 32;  // characters; U+FDFA has 18
  std::array<std::int32_t, longest_decomposition> decomposed{};
  const auto options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (form_.compatibility ? UTF8PROC_COMPAT : 0);
  const auto finish_run = [&] {
    order_marks(characters);
    auto count = static_cast<utf8proc_ssize_t>(characters.size());
    if (form_.compose) {
      count = utf8proc_normalize_utf32(characters.data(), count,
                                       static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    }
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      append_utf8(result, static_cast<char32_t>(characters[static_cast<std::size_t>(i)]));
    }
    characters.clear();
  };
  for (std::size_t i = 0; i < part.size(); i += utf8_step(part, i).length) {
    const auto character = code_point_at(part, i);
    if (is_newer_than_normalization(character)) {
      finish_run();
      append_utf8(result, character);
      continue;
    }
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), decomposed.data(),
                                               decomposed.size(), static_cast<utf8proc_option_t>(options), &boundary);
    require(count >= 0 && count <= std::ssize(decomposed), "utf8proc: a decomposition of unexpected length");
    characters.insert(characters.end(), decomposed.begin(), decomposed.begin() + count);
  }
  finish_run();
}

}  // namespace gptqd::io
