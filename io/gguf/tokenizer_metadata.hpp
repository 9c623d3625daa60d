#pragma once
/// @file A model folder's tokenizer as llama.cpp wants it: tokenizer.ggml.* and the chat template.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "io/gguf/gguf_file.hpp"

namespace gptqd::io {

/// Reads tokenizer.model (SentencePiece BPE), else tokenizer.json: byte-level BPE with a pre-tokenizer that llama.cpp
/// knows (of GPT-2, BLOOM, Llama 3, Qwen2, SmolLM), or BPE with byte fallback (Llama 2, Mistral), whose scores are made
/// from the ranks of its merges.
///
/// Ids above the tokenizer's up to `vocabulary` become unused tokens, as models pad their embeddings.
/// @param config  the folder's config.json: special tokens that tokenizer_config.json does not name
/// @throws Error (input) for a tokenizer that is not there or damaged, or that llama.cpp does not know; (usage) for one
///         with more tokens than the model
GgufMetadata tokenizer_metadata(const std::filesystem::path& folder, const nlohmann::json& config,
                                std::int64_t vocabulary);

}  // namespace gptqd::io
