#pragma once
/// @file What stands beside a vocabulary that has no tokenizer.json: tokenizer_config.json, special_tokens_map.json and
/// added_tokens.json of transformers.
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/added_tokens.hpp"

namespace gptqd::io {

/// A token that a file names; many come without an id.
struct NamedToken {
  AddedToken token;  ///< its id counts if `has_id`
  bool has_id = false;
};

struct TokenizerConfig {
  bool found = false;           ///< whether one of the files is there
  std::string tokenizer_class;  ///< without "Fast" at its end; empty: not said
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::optional<bool> add_prefix_space;
  std::optional<bool> legacy;  ///< LlamaTokenizer: a blank in front of every run of text, not of the first alone
  std::string bos_token;       ///< empty: not said
  std::string eos_token;
  std::string unk_token;
  std::vector<NamedToken> added;  ///< by ids, then those without; no content twice

  const NamedToken* find(std::string_view content) const;
  /// Adds a special token, or marks one that is there as special.
  void add_special(const std::string& content);
};

/// Reads what is there of the three files. What tokenizer_config.json says comes before special_tokens_map.json.
/// @param classes  tokenizer classes (without "Fast") whose rules the caller follows
/// @throws Error (input) for damaged files, and for another tokenizer class, naming it; (io)
TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder,
                                      std::initializer_list<std::string_view> classes);

}  // namespace gptqd::io
