#include "io/tokenizer/utf8.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

unsigned byte_at(std::string_view text, std::size_t position) { return static_cast<unsigned char>(text[position]); }

/// The first position at or after `position` that is not well-formed, or the end.
std::size_t skip_valid(std::string_view text, std::size_t position) {
  while ((position = skip_ascii(text, position)) < text.size()) {
    const auto step = utf8_step(text, position);
    if (!step.valid) {
      break;
    }
    position += step.length;
  }
  return position;
}

}  // namespace

std::size_t skip_ascii(std::string_view text, std::size_t position) {
  constexpr std::uint64_t high_bits = 0x8080808080808080u;
  while (position + 8 <= text.size()) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + position, sizeof word);
    if ((word & high_bits) != 0) {
      break;
    }
    position += 8;
  }
  while (position < text.size() && byte_at(text, position) < 0x80) {
    ++position;
  }
  return position;
}

Utf8Step utf8_step(std::string_view text, std::size_t position) {
  const unsigned lead = byte_at(text, position);
  if (lead < 0x80) {
    return {1, true};
  }
  // The second byte's range depends on the first (Unicode, table 3-7); all later ones are 80..BF.
  std::size_t length = 0;
  unsigned low = 0x80;
  unsigned high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    low = lead == 0xe0 ? 0xa0 : low;
    high = lead == 0xed ? 0x9f : high;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    low = lead == 0xf0 ? 0x90 : low;
    high = lead == 0xf4 ? 0x8f : high;
  } else {
    return {1, false};
  }
  for (std::size_t i = 1; i < length; ++i) {
    if (position + i >= text.size() || byte_at(text, position + i) < low || byte_at(text, position + i) > high) {
      return {i, false};
    }
    low = 0x80;
    high = 0xbf;
  }
  return {length, true};
}

bool is_valid_utf8(std::string_view text) { return skip_valid(text, 0) == text.size(); }

std::string replace_invalid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  std::size_t position = 0;
  while (position < text.size()) {
    const auto end = skip_valid(text, position);
    result.append(text.substr(position, end - position));
    position = end;
    if (position < text.size()) {
      result += "\xef\xbf\xbd";
      position += utf8_step(text, position).length;
    }
  }
  return result;
}

char32_t code_point_at(std::string_view text, std::size_t position) {
  const unsigned lead = byte_at(text, position);
  if (lead < 0x80) {
    return lead;
  }
  const int length = std::countl_one(static_cast<unsigned char>(lead));
  char32_t code_point = lead & (0x7fu >> length);
  for (int i = 1; i < length; ++i) {
    code_point = code_point << 6 | (byte_at(text, position + static_cast<std::size_t>(i)) & 0x3fu);
  }
  return code_point;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto append = [&text](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code_point < 0x80) {
    append(code_point);
    return;
  }
  if (code_point < 0x800) {
    append(0xc0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      append(0xe0 | code_point >> 12);
    } else {
      append(0xf0 | code_point >> 18);
      append(0x80 | (code_point >> 12 & 0x3f));
    }
    append(0x80 | (code_point >> 6 & 0x3f));
  }
  append(0x80 | (code_point & 0x3f));
}

std::optional<std::string> repaired_text(std::string_view text) {
  const auto check = [](std::string_view checked) {
    if (checked.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      throw Error(ErrorKind::input,
                  fmt::format("tokenizing a text of {} bytes: texts must be below 2 GiB; split it", checked.size()));
    }
  };
  check(text);
  if (is_valid_utf8(text)) {
    return std::nullopt;
  }
  auto result = replace_invalid_utf8(text);
  check(result);
  return result;
}

std::string replaced(std::string_view text, std::string_view what, std::string_view content) {
  std::string result;
  result.reserve(text.size());
  std::size_t done = 0;
  for (auto at = text.find(what); at != std::string_view::npos; at = text.find(what, done)) {
    result.append(text, done, at - done).append(content);
    done = at + what.size();
  }
  return result.append(text, done);
}

bool is_white_space(char32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0d) || code_point == 0x20 || code_point == 0x85 || code_point == 0xa0 ||
         code_point == 0x1680 || (code_point >= 0x2000 && code_point <= 0x200a) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202f || code_point == 0x205f || code_point == 0x3000;
}

std::size_t last_character(std::string_view text) {
  std::size_t position = text.size() - 1;
  while (position > 0 && (byte_at(text, position) & 0xc0u) == 0x80u) {
    --position;
  }
  return position;
}

std::size_t trailing_space(std::string_view text) {
  while (!text.empty()) {
    const auto last = last_character(text);
    if (!is_white_space(code_point_at(text, last))) {
      break;
    }
    text = text.substr(0, last);
  }
  return text.size();
}

std::size_t leading_space(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size() && is_white_space(code_point_at(text, position))) {
    position += utf8_step(text, position).length;
  }
  return position;
}

}  // namespace gptqd::io
