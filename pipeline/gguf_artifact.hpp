#pragma once
/// @file One GGUF file for llama.cpp: which of its architectures a model is, and how its tensors are named and ordered
/// there.
#include <memory>

#include "io/artifact/artifact_writer.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// A writer of `model.gguf` for the families that llama.cpp knows: llama (and Mistral), qwen2, qwen3, phi3, bloom.
///
/// Packed layers become blocks that hold them exactly (io/gguf/blocks.hpp); all other matrices keep their type, vectors
/// become float32. Rows of q and k of a llama are in ggml's order of rotary pairs, BLOOM's q, k, v are de-interleaved,
/// llama3's scaled frequencies and longrope's factors lie in tensors of their own. llama.cpp has no sliding window in
/// these architectures: the context length is the window's then, up to which the results are the same.
/// @pre content and model outlive the writer
/// @throws Error (usage) for what llama.cpp does not know or no block type holds, with the reason; (input) for a
///         tokenizer that cannot be written
std::unique_ptr<io::ArtifactWriter> make_gguf_writer(const io::ArtifactContent& content, const ModelSpec& model,
                                                     const io::ArtifactOptions& options);

}  // namespace gptqd::pipeline
