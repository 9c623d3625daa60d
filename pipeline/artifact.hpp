#pragma once
/// @file From finished shards to the deployable artifact.
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "io/gptq_checkpoint.hpp"
#include "io/shard_store.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// What config.json's quantization_config and quantize_config.json say (docs/formats.md).
/// @param fingerprint  of the run; its spec decides bits, groups, symmetry, order, its layers what differs from them
nlohmann::json quantization_config(const nlohmann::json& fingerprint, const ModelSpec& model);

/// Names of the quantized modules, block by block.
std::vector<std::vector<std::string>> quantized_modules(const nlohmann::json& fingerprint, const ModelSpec& model);

/// Streams the shards into the artifact at `out`.
/// @param seen  called with each block's shard as it passes, for the report
io::ArtifactSummary write_artifact(const io::ShardStore& store, const nlohmann::json& fingerprint,
                                   const ModelSpec& model, const io::CheckpointReader& source,
                                   const std::filesystem::path& out, std::int64_t max_shard_bytes,
                                   const std::function<void(const io::BlockShard&)>& seen);

/// Reads a shard and checks that it belongs to the run. @throws Error (input) naming the shard and both fingerprints
io::BlockShard read_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint);

}  // namespace gptqd::pipeline
