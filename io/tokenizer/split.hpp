#pragma once
/// @file Cutting a text at the matches of a pattern, in the ways that Hugging Face's Split knows.
#include <functional>
#include <optional>
#include <string_view>

#include "io/tokenizer/regex.hpp"

namespace gptqd::io {

/// What becomes of a match.
enum class SplitBehavior {
  removed,               ///< it goes
  isolated,              ///< it is a piece
  merged_with_previous,  ///< the end of the piece before it
  merged_with_next,      ///< the start of the piece behind it
  contiguous,            ///< a piece with the matches that touch it
};
/// The behaviour that tokenizer.json calls "Isolated", ...; nullopt for another name.
std::optional<SplitBehavior> split_behavior(std::string_view name);

using OnPiece = std::function<void(std::string_view piece)>;

/// Gives the pieces of `text` in order, none of them empty. Runs that the pattern does not match are pieces of their
/// own.
/// @param invert  the matches are what lies between the pattern's matches
/// @pre text is valid UTF-8
/// @throws Error (input) as Regex::for_each_match; what `piece` throws
void split(std::string_view text, const Regex& pattern, SplitBehavior behavior, bool invert, const OnPiece& piece);

}  // namespace gptqd::io
