#pragma once
/// @file From what the user calls a model to the folder that holds it.
#include <filesystem>
#include <string>

namespace gptqd::io {

/// The folder of the model `name`. Looked for, in this order:
///   1. `name` itself, if it is a folder;
///   2. `name` in each folder of the colon-separated list $GPTQ_DIST_MODELS;
///   3. the Hugging Face cache ($HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub,
///      ~/.cache/huggingface/hub): models--ORG--NAME/snapshots/HASH, HASH being what its refs/main says.
/// In 2 and 3 the aliases of well-known models are looked for too: bloom-176b is bigscience/bloom, opt-125m is
/// facebook/opt-125m. Nothing is downloaded.
/// @throws Error (input) listing every place that was looked at, and what is wrong with a repository that is there
std::filesystem::path find_model(const std::string& name);

}  // namespace gptqd::io
