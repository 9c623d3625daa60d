#pragma once
/// @file Links that lead out of an artifact.
#include <filesystem>
#include <string>
#include <vector>

namespace gptqd::io {

/// Artifacts come from strangers: a link in one may lead to any file of this machine, which reading or converting it
/// would then carry along. Files must lie in the artifact's folder, or, for a snapshot of the Hugging Face cache, in
/// the same repository's blobs.
/// @param names  of files besides those that stand in the folder itself: "part/model-00001.safetensors"
/// @throws Error (input) naming the link and where it leads
void require_contained(const std::filesystem::path& folder, const std::vector<std::string>& names);

}  // namespace gptqd::io
