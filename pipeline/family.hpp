#pragma once
/// @file Model families: from config.json and tensor names to a ModelSpec. One file each in pipeline/families/.
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "io/checkpoint_reader.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// Describes the model of a folder.
/// @param config  the folder's config.json
/// @throws Error (input) for a model_type that no family knows (the message lists those that are known), settings that
///         are not implemented, and tensors that are missing or have other shapes than config.json says
ModelSpec describe_model(const nlohmann::json& config, const io::CheckpointReader& tensors);
/// The same without looking at the tensors but for the prefix of their names and the embedding's type.
ModelSpec describe_config(const nlohmann::json& config, const io::CheckpointReader& tensors);

/// Whether the model_type is one that describe_model() knows.
bool is_known_family(std::string_view model_type);

// The families. Each throws Error (input) naming what it does not implement.
ModelSpec describe_bloom(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_llama(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_mistral(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_opt(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_phi3(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_qwen2(const nlohmann::json& config, const io::CheckpointReader& tensors);
ModelSpec describe_qwen3(const nlohmann::json& config, const io::CheckpointReader& tensors);

}  // namespace gptqd::pipeline
