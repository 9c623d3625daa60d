#include "io/tokenizer/byte_alphabet.hpp"

#include <array>

#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

namespace {

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

}  // namespace gptqd::io
