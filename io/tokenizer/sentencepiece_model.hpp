#pragma once
/// @file tokenizer.model (SentencePiece), the form of Llama 2's and Mistral's own repositories.
#include <filesystem>
#include <memory>

#include "io/tokenizer.hpp"

namespace gptqd::io {

/// The tokenizer of a folder with tokenizer.model, a BPE model of SentencePiece, as transformers' LlamaTokenizer has
/// it.
///
/// Text goes through the sentencepiece library. Control symbols, the unknown token, and what tokenizer_config.json,
/// special_tokens_map.json and added_tokens.json name are found in the text first; the library then gets the runs
/// between them, each with a blank in front (`legacy`, the default), or the text's first alone, where it does not begin
/// with one. bos_token stands before a text unless add_bos_token is false, eos_token after it if add_eos_token is true.
/// @throws Error (input) for a damaged file, another model than BPE, a model with a normalization of its own, and
/// another
///         tokenizer class; (io)
std::unique_ptr<Tokenizer> tokenizer_from_sentencepiece(const std::filesystem::path& folder);

}  // namespace gptqd::io
