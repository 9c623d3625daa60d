#pragma once
/// @file vocab.json and merges.txt, the form of GPT-2's and OPT's own repositories.
#include <filesystem>
#include <memory>

#include "io/tokenizer.hpp"

namespace gptqd::io {

/// The tokenizer of a folder with vocab.json and merges.txt, as transformers' GPT2Tokenizer has it.
///
/// Special tokens, and whether they surround a text (OPT: </s> in front), are what tokenizer_config.json and
/// special_tokens_map.json say; bos_token, eos_token and unk_token that they do not name are <|endoftext|>, if it is in
/// the vocabulary. Without add_bos_token, a model whose config.json says "opt" has its bos_token in front.
/// @throws Error (input) for files that are damaged, contradict one another or ask for another tokenizer class, and if
///         neither of the two files with special tokens is there; (io)
std::unique_ptr<Tokenizer> tokenizer_from_vocab_merges(const std::filesystem::path& folder);

}  // namespace gptqd::io
