#pragma once
/// @file How byte-level tokenizers spell bytes (GPT-2's bytes_to_unicode).
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace gptqd::io {

/// A printable character for each of the 256 bytes. Printable Latin-1 bytes stand for themselves, the others, in order,
/// are U+0100, U+0101, ...: blank is "Ġ" (U+0120).
char32_t byte_level_character(std::uint8_t byte);
/// The bytes that a token spells; nullopt if one of its characters spells no byte. @pre valid UTF-8
std::optional<std::string> byte_level_bytes(std::string_view token);

}  // namespace gptqd::io
