#pragma once
/// @file tokenizer.json (Hugging Face tokenizers): what it asks for, as a Tokenizer.
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "io/tokenizer.hpp"

namespace gptqd::io {

/// The tokenizer that `json` describes.
///
/// | part | what is supported |
/// |---|---|
/// | added_tokens | all flags; ids that are the model's for the content, or the next free ones |
/// | normalizer | read_normalizer() |
/// | pre_tokenizer | read_pre_tokenizers() |
/// | model | BPE without dropout, subword prefix and word suffix |
/// | post_processor | read_template() |
/// | decoder | read_decoder() |
///
/// @param where  the file's name, for messages
/// @throws Error (input) naming the part and what is wrong with it, or that it is not supported
std::unique_ptr<Tokenizer> tokenizer_from_json(const nlohmann::json& json, std::string_view where);

}  // namespace gptqd::io
