#pragma once
/// @file Unicode properties as members of a PCRE2 character class: fmt::format("[{}]+", unicode_letters).
///
/// Hugging Face tokenizers cuts texts by the tables of Unicode 16; PCRE2's depend on its version (Unicode 14 in 10.42).
/// The ranges are what Unicode 15 and 16 have added, so that PCRE2 cuts alike from 10.42 on.
#include <string_view>

namespace gptqd::io {

/// \p{L}
inline constexpr std::string_view unicode_letters =
    R"(\p{L})"
    R"(\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3}\x{10d4a}-\x{10d65})"
    R"(\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240}\x{11380}-\x{11389}\x{1138b}\x{1138e})"
    R"(\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3}\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10})"
    R"(\x{11f12}-\x{11f33}\x{1342f}\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c})"
    R"(\x{18cff}\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb}\x{1e5d0}-\x{1e5ed})"
    R"(\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";

/// \p{N}
inline constexpr std::string_view unicode_numbers =
    R"(\p{N})"
    R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59}\x{16130}-\x{16139})"
    R"(\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9}\x{1d2c0}-\x{1d2d3}\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})";

/// White_Space. PCRE2's \s has U+180E besides, which is none since Unicode 6.3.
inline constexpr std::string_view unicode_spaces =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// \w of UTS 18: alphabetic, mark, decimal digit, connector punctuation, join control.
inline constexpr std::string_view unicode_words =
    R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d})"
    R"(\x{897}\x{cf3}\x{ece}\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3})"
    R"(\x{10d40}-\x{10d65}\x{10d69}-\x{10d6d}\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{10efc}-\x{10eff})"
    R"(\x{1123f}-\x{11241}\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}-\x{113c0}\x{113c2})"
    R"(\x{113c5}\x{113c7}-\x{113ca}\x{113cc}-\x{113d3}\x{113e1}-\x{113e2}\x{116d0}-\x{116e3}\x{11bc0}-\x{11be0})"
    R"(\x{11bf0}-\x{11bf9}\x{11f00}-\x{11f10}\x{11f12}-\x{11f3a}\x{11f3e}-\x{11f42}\x{11f50}-\x{11f5a}\x{1342f})"
    R"(\x{13440}-\x{13455}\x{13460}-\x{143fa}\x{16100}-\x{16139}\x{16d40}-\x{16d6c}\x{16d70}-\x{16d79}\x{18cff})"
    R"(\x{1b132}\x{1b155}\x{1ccf0}-\x{1ccf9}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e08f}\x{1e4d0}-\x{1e4f9})"
    R"(\x{1e5d0}-\x{1e5fa}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";

}  // namespace gptqd::io
