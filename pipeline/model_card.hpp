#pragma once
/// @file README.md of an artifact: what it is, how it was made, how to load it.
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "io/artifact/artifact_format.hpp"
#include "io/artifact/content.hpp"
#include "pipeline/report.hpp"

namespace gptqd::pipeline {

inline constexpr const char* model_card_file = "README.md";

/// Depends on the artifact's content alone: not on time, host, folders or the number of ranks. The name is that of
/// config.json (_name_or_path), where it is one.
/// @param fingerprint  of the run; null for a converted artifact, whose run is not known
/// @param table        the layers' records; null where they are not known
std::string model_card(io::ArtifactFormat format, const io::ArtifactContent& content, const nlohmann::json* fingerprint,
                       const LayerTable* table);

/// The card with its section of perplexities replaced, or added at its end.
/// @param perplexity  VerifyReport::perplexity
std::string with_perplexity(const std::string& card, const nlohmann::json& perplexity);

}  // namespace gptqd::pipeline
