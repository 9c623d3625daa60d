#pragma once
/// @file Bit streams, one bit at a time.
#include <cstdint>
#include <vector>

namespace gptqd::reference {

/// LSB-first: bit k of element i is bit bits·i + k of the stream, bit j of the stream is bit j % 32 of word j / 32.
std::vector<std::uint32_t> pack(const std::vector<std::uint8_t>& codes, int bits);

/// Element i of the stream.
std::uint8_t element(const std::vector<std::uint32_t>& words, std::int64_t i, int bits);

}  // namespace gptqd::reference
