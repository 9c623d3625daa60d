#pragma once
/// @file The files of an artifact besides its weights.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>

#include "io/artifact/artifact_writer.hpp"

namespace gptqd::io {

/// Says in every artifact of ours how it came to be: {"format", "facts"} (ArtifactContent::facts).
inline constexpr const char* provenance_file = "gptq_dist.json";

ArtifactFile write_provenance(ArtifactFormat format, const ArtifactContent& content,
                              const std::filesystem::path& folder);
/// The folder's gptq_dist.json; nullopt where there is none. @throws Error (input) for a damaged one
std::optional<nlohmann::json> read_provenance(const std::filesystem::path& folder);

/// Files of a model folder that travel along: tokenizer, generation_config, chat template, licence, code.
std::set<std::filesystem::path> companions(const std::filesystem::path& folder);

/// Both leave it to the AtomicFolder that they write into to have the file on the disk.
ArtifactFile write_text_file(const std::filesystem::path& path, const std::string& text);
ArtifactFile copy_companion(const std::filesystem::path& from, const std::filesystem::path& folder);

}  // namespace gptqd::io
