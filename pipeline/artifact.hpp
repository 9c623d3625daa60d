#pragma once
/// @file From finished shards, or from another artifact, to the deployable artifact.
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "io/artifact/artifact_reader.hpp"
#include "io/artifact/artifact_writer.hpp"
#include "io/shard_store.hpp"
#include "pipeline/model_spec.hpp"
#include "pipeline/source.hpp"

namespace gptqd::pipeline {

/// Names of the quantized modules, block by block.
std::vector<std::vector<std::string>> quantized_modules(const nlohmann::json& fingerprint, const ModelSpec& model);

/// The format that most engines take for these settings: gptq, or gptq_v2 where zeros are not all in the middle.
io::ArtifactFormat default_format(const nlohmann::json& fingerprint);

/// What a run with this fingerprint will make of the float model: everything but the layers' codes.
/// @param fingerprint  its spec decides bits, groups, symmetry, order
/// References outlive the content.
io::ArtifactContent content_of_source(const nlohmann::json& fingerprint, const Source& source);

/// What the shards of a finished run and the float model make together.
/// @param seen  called once with each block that is read, its linears without their arrays; from several threads, in
///              any order
/// References outlive the content.
io::ArtifactContent content_of_shards(const io::ShardStore& store, const nlohmann::json& fingerprint,
                                      const Source& source, std::function<void(const io::BlockShard&)> seen);

/// What an artifact holds, to be written in another format.
/// @param folder  the artifact's; the reader outlives the content
/// @throws Error (input) for a layer that cannot be read, and for zeros that readers disagree on
io::ArtifactContent content_of_artifact(const io::ArtifactReader& reader, const std::filesystem::path& folder,
                                        const ModelSpec& model);

/// @param model  that the content is of; outlives the writer, as the content does
/// @throws Error (usage) for what the format cannot hold, with the reason
std::unique_ptr<io::ArtifactWriter> make_artifact_writer(io::ArtifactFormat format, const io::ArtifactContent& content,
                                                         const ModelSpec& model, const io::ArtifactOptions& options);

/// Opens a shard and checks that it belongs to the run. @throws as read_shard
io::ShardFile open_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint);
/// Reads a shard and checks that it belongs to the run. @throws Error (input) naming the shard and both fingerprints
io::BlockShard read_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint);

}  // namespace gptqd::pipeline
