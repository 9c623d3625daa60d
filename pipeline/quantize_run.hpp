#pragma once
/// @file The quantize run: from a model folder and a text to shards and one artifact.
#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/world.hpp"
#include "gptq/quant_spec.hpp"
#include "io/artifact/artifact_format.hpp"
#include "kernels/backend.hpp"
#include "pipeline/block_quantizer.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/layer_specs.hpp"

namespace gptqd::pipeline {

/// What to do with what an earlier run has left in the work folder.
enum class RestartMode {
  go_on,  ///< finished blocks are kept
  fresh,  ///< everything is made again
};

struct QuantizeConfig {
  std::filesystem::path model;  ///< folder of the source, or a synthetic model's name
  std::filesystem::path out;
  std::filesystem::path work;  ///< shards and checkpoint
  std::optional<std::filesystem::path> report;
  CalibrationRequest calibration;  ///< without sources: generated tokens, for a synthetic model
  gptq::QuantSpec spec;
  std::vector<LayerRule> layer_rules;  ///< where linears differ from `spec`
  bool choose_clip = false;            ///< a group size of a rule brings its default_clip()
  gptq::Partition partition;           ///< panel_columns and row_tile 0: what the backend prefers
  std::int64_t micro_batch_tokens = 4096;
  bool true_sequential = true;
  Propagation propagation = Propagation::quantized;
  std::optional<Activations> activations = std::nullopt;  ///< nothing: as memory allows
  int stages = 1;
  std::int64_t max_fallbacks = 0;
  bool allow_mixed = false;                  ///< continue shards made by another version, backend or BLAS
  std::optional<io::ArtifactFormat> format;  ///< of the artifact; default: what most engines take
  std::int64_t max_shard_bytes = 4'000'000'000;
  bool merge = true;  ///< false: the run ends with its shards
  RestartMode restart = RestartMode::go_on;
  std::int64_t snapshot_every = 0;  ///< blocks between two snapshots of the hidden states; 0: none
  /// The run stops by itself before a block that would not be finished by then.
  std::optional<std::chrono::steady_clock::time_point> finish_by = std::nullopt;
};

/// How far a stage is; given to the observer after each block.
struct BlockProgress {
  std::int64_t block = 0;
  std::int64_t blocks = 0;
  std::int64_t done = 0;   ///< blocks this stage has gone through in this run
  std::int64_t to_do = 0;  ///< blocks this stage goes through in this run
  bool replayed = false;
  double seconds = 0;
  double eta_seconds = 0;
  std::optional<double> loss_ratio = std::nullopt;  ///< geometric mean of loss / rtn_loss over the block's linears
};

/// Called on the ranks that speak: replica 0 of each stage (note: rank 0 alone).
struct RunObserver {
  std::function<void(const std::string& line)> note;
  std::function<void(const BlockProgress& progress)> block;
};

/// What a finished run says of itself; complete on rank 0 only.
struct QuantizeSummary {
  std::filesystem::path out;
  std::int64_t artifact_bytes = 0;  ///< 0 without a merge
  std::int64_t source_bytes = 0;
  double seconds = 0;
  std::int64_t blocks_computed = 0;
  std::int64_t blocks_found = 0;
  std::optional<double> loss_ratio = std::nullopt;
  bool already_complete = false;  ///< OUT was there, made by the same run
  /// Why the run ended before its artifact; nothing when it did not. On every rank.
  std::optional<std::string> stopped = std::nullopt;
  std::int64_t blocks = 0;  ///< of the model
};

/// Collective over the world. Every rank passes the same config.
///
/// Continues what `work` holds: blocks whose shards are complete are run forward from their packed codes, and the first
/// missing one is computed. Ends with the artifact at `out`, complete; or with an Error and nothing at `out`; or, asked
/// to stop (see World), at the next boundary of phases: blocks that are complete are on disk, `stopped` says why.
///
/// Holds WORK/lock while it runs. @throws Error (usage) naming the holder when another run does
QuantizeSummary run_quantize(comm::World& world, Backend& backend, const QuantizeConfig& config,
                             const RunObserver& observer);

}  // namespace gptqd::pipeline
