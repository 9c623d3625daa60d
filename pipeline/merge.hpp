#pragma once
/// @file The last step of a run, and the commands that do it alone: shards to artifact, artifact to artifact.
#include <filesystem>
#include <optional>
#include <string>

#include "comm/world.hpp"
#include "io/artifact/artifact_writer.hpp"
#include "io/shard_store.hpp"
#include "pipeline/quantize_run.hpp"
#include "pipeline/report.hpp"
#include "pipeline/source.hpp"

namespace gptqd::pipeline {

struct MergeOptions {
  std::filesystem::path out;
  std::optional<io::ArtifactFormat> format;  ///< default: what most engines take
  std::int64_t max_shard_bytes = 4'000'000'000;
};

/// Whether there is anything but an empty folder.
bool is_filled(const std::filesystem::path& path);

/// True when `out` holds this run's artifact in this format already; false when nothing is there.
/// @param fingerprint  of the run
/// @throws Error (usage) when it holds anything else
bool artifact_is_complete(const MergeOptions& options, const nlohmann::json& fingerprint);

/// Before hours of work: makes sure that the format will hold the result.
/// @throws Error (usage) naming the first layer that it cannot hold, and why
void require_format(const nlohmann::json& fingerprint, const Source& source, const MergeOptions& options);

/// @throws Error (input) naming the first block whose shard is missing or has another length than its sidecar says;
///         its content is compared with the checksum when it is read
void require_shards(const io::ShardStore& store, std::int64_t blocks);

/// Every layer of the run has passed: the fallbacks of blocks that were found count as well.
/// @throws Error (input) naming the linears that fell back, when they are more than `most`
void check_fallbacks(const LayerTable& table, std::int64_t most);

/// Finished shards to artifact, in this process.
/// @param table  gets every block's records, in order
io::ArtifactSummary merge(const io::ShardStore& store, const nlohmann::json& fingerprint, const Source& source,
                          const MergeOptions& options, std::int64_t max_fallbacks, LayerTable& table);
/// The same, the files of weights split over the world's ranks, which see one file system. Collective.
/// @param table  filled on rank 0
/// @return on rank 0; nothing on the others
io::ArtifactSummary merge(comm::World& world, const io::ShardStore& store, const nlohmann::json& fingerprint,
                          const Source& source, const MergeOptions& options, std::int64_t max_fallbacks,
                          LayerTable& table);

/// Bytes of the model's files.
std::int64_t total_bytes(const io::CheckpointReader& tensors);

/// What a run's fingerprint says of the source.
nlohmann::json model_identity(const Source& source);

/// Merges the finished shards of a work folder. Needs no MPI.
/// @param source_folder  of the float weights; empty: where the run found it
/// @throws Error (input) naming missing or damaged blocks, or a source that is not the one the shards were made from;
///         (usage) for a format that cannot hold the result, with the reason
QuantizeSummary merge_shards(const std::filesystem::path& work, const std::filesystem::path& source_folder,
                             const MergeOptions& options, const RunObserver& observer);

/// Writes an artifact in another format without loss. Needs no MPI.
/// @throws Error (usage) for a format that cannot hold the result, with the reason; (input) for a damaged artifact
io::ArtifactSummary convert_artifact(const std::filesystem::path& artifact, const MergeOptions& options,
                                     const RunObserver& observer);

}  // namespace gptqd::pipeline
