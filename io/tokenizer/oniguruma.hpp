#pragma once
/// @file Oniguruma's regular expressions, in which tokenizer.json is written, in PCRE2's syntax.
#include <string>
#include <string_view>

namespace gptqd::io {

/// A PCRE2 pattern (for UTF and UCP) that matches what Oniguruma's `pattern` matches in Hugging Face tokenizers.
///
/// Understood: literals and their escapes, ".", groups (also with lookahead, atomic, "(?i:...)" of ASCII), alternation,
/// quantifiers, character classes with positive classes nested in them, \s \d \w and their complements, general
/// categories (\p{L}, \P{Lu}), \A, \z. Classes are spelled out by the tables of unicode_tables.hpp.
/// @throws Error (input) naming the construct that means something else in PCRE2, or that neither knows
std::string pcre2_from_oniguruma(std::string_view pattern);

/// A PCRE2 pattern that matches `text` and nothing else.
std::string literal_pattern(std::string_view text);

}  // namespace gptqd::io
