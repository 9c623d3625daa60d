#pragma once
/// @file Metaspace: blanks written as a visible character, "▁" (U+2581).
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace gptqd::io {

/// The settings that Metaspace has as a pre-tokenizer and as a decoder.
struct Metaspace {
  enum class Prepend { always, first, never };

  std::string replacement;            ///< one character
  Prepend prepend = Prepend::always;  ///< where a text gets a blank at its start that has none
  bool split = true;                  ///< cut before each replacement
};

/// @param name  the part's name, for messages
/// @throws Error (input) for wrong settings
Metaspace read_metaspace(const nlohmann::json& part, std::string_view name, std::string_view where);

}  // namespace gptqd::io
