#include "tests/reference/pack.hpp"

namespace gptqd::reference {

std::vector<std::uint32_t> pack(const std::vector<std::uint8_t>& codes, int bits) {
  const auto width = static_cast<std::size_t>(bits);
  std::vector<std::uint32_t> words(codes.size() * width / 32);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    for (std::size_t k = 0; k < width; ++k) {
      const auto place = i * width + k;
      words[place / 32] |= static_cast<std::uint32_t>(codes[i] >> k & 1) << (place % 32);
    }
  }
  return words;
}

std::uint8_t element(const std::vector<std::uint32_t>& words, std::int64_t i, int bits) {
  const auto width = static_cast<std::size_t>(bits);
  unsigned value = 0;
  for (std::size_t k = 0; k < width; ++k) {
    const auto place = static_cast<std::size_t>(i) * width + k;
    value |= (words[place / 32] >> (place % 32) & 1u) << k;
  }
  return static_cast<std::uint8_t>(value);
}

}  // namespace gptqd::reference
