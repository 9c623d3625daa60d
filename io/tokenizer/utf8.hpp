#pragma once
/// @file UTF-8: code points, and the repair of what is not UTF-8.
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace gptqd::io {

/// What stands at one place of a text.
struct Utf8Step {
  std::size_t length = 0;  ///< bytes of the character, or of the maximal subpart of an ill-formed one (at least 1)
  bool valid = false;
};

/// The character at `position`. Surrogates, overlong forms and values above U+10FFFF are ill-formed.
/// @pre position < text.size()
Utf8Step utf8_step(std::string_view text, std::size_t position);

/// `text` with each maximal subpart of an ill-formed sequence replaced by U+FFFD (Unicode 15, section 3.9,
/// "Substitution of maximal subparts"; so do Rust's from_utf8_lossy and Python's errors="replace").
std::string replace_invalid_utf8(std::string_view text);

/// replace_invalid_utf8(text) for a text to be tokenized; nullopt where nothing has to be replaced.
/// @throws Error (input) for 2 GiB and more, before or after
std::optional<std::string> repaired_text(std::string_view text);

/// Whether `text` needs no replacement.
bool is_valid_utf8(std::string_view text);

/// The code point at `position`. @pre valid UTF-8 with a character starting there
char32_t code_point_at(std::string_view text, std::size_t position);

/// Appends `code_point` as UTF-8. @pre a Unicode scalar value
void append_utf8(std::string& text, char32_t code_point);

/// The first position at or after `position` whose byte is not ASCII.
std::size_t skip_ascii(std::string_view text, std::size_t position);

/// `text` with every `what` replaced by `content`. @pre what is not empty
std::string replaced(std::string_view text, std::string_view what, std::string_view content);

/// Unicode's White_Space property.
bool is_white_space(char32_t code_point);
/// Where the white space at the start of `text` ends. @pre valid UTF-8
std::size_t leading_space(std::string_view text);
/// Where the white space at the end of `text` begins. @pre valid UTF-8
std::size_t trailing_space(std::string_view text);
/// Start of the last character of `text`. @pre valid UTF-8, not empty
std::size_t last_character(std::string_view text);

}  // namespace gptqd::io
