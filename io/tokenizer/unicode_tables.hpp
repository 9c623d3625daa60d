#pragma once
/// @file Unicode properties as Hugging Face tokenizers sees them, whatever the version of PCRE2 and utf8proc.
///
/// Its regular expressions (Oniguruma) know Unicode 16, PCRE2 10.42 Unicode 14; its normalization has the tables of an
/// older Unicode than utf8proc. All tables were compared code point by code point with tokenizers 0.23.
#include <string>
#include <string_view>

namespace gptqd::io {

/// Whether `name` is a general category that category_members() knows: "L", "Lu", ..., without C, Cn, Cs, and Mn,
/// which has lost a character.
bool is_general_category(std::string_view name);
/// \p{category} of Oniguruma as members of a PCRE2 character class: fmt::format("[{}]+", category_members("L")).
/// @pre is_general_category(category)
std::string category_members(std::string_view category);

/// White_Space, for a PCRE2 class. PCRE2's \s has U+180E besides, which is none since Unicode 6.3.
inline constexpr std::string_view space_members =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// What \w is inside classes of Oniguruma, for a PCRE2 class: alphabetic, mark, decimal digit, connector punctuation.
std::string word_members();
/// What \w has besides outside of classes: superscripts and fractions of Latin-1.
inline constexpr std::string_view more_word_members = R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";
/// \w of Rust's regex, for a PCRE2 class: that of UTS 18 (alphabetic, mark, decimal digit, connector, join control).
std::string rust_word_members();
/// Rust's char::is_numeric, for a PCRE2 class.
std::string numeric_members();

/// Whether Hugging Face's normalization does nothing with `character` where newer tables would: it neither
/// decomposes, nor composes, nor moves.
bool is_newer_than_normalization(char32_t character);

}  // namespace gptqd::io
