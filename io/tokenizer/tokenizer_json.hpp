#pragma once
/// @file tokenizer.json (Hugging Face tokenizers): what it asks for, as a Tokenizer.
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/tokenizer.hpp"

namespace gptqd::io {

/// The tokenizer that `json` describes. So far: byte-level BPE as of GPT-2 and OPT.
///
/// | part | what is supported |
/// |---|---|
/// | added_tokens | all flags |
/// | normalizer | null |
/// | pre_tokenizer | ByteLevel, with or without its regex and its prefix space |
/// | model | BPE without dropout, subword prefix, word suffix and byte_fallback |
/// | post_processor | null, ByteLevel, TemplateProcessing (single texts), Sequence of these with one template |
/// | decoder | ByteLevel |
///
/// @param where  the file's name, for messages
/// @throws Error (input) naming the part and what is wrong with it, or that it is not supported
std::unique_ptr<Tokenizer> tokenizer_from_json(const nlohmann::json& json, std::string_view where);

}  // namespace gptqd::io
