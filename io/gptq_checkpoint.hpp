#pragma once
/// @file The deployable artifact: a Hugging Face folder in the GPTQ checkpoint format, written and read.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/gptq_dynamic.hpp"
#include "io/packed_linear.hpp"
#include "io/shard_store.hpp"

namespace gptqd::io {

struct ArtifactRequest {
  const CheckpointReader* source = nullptr;
  std::filesystem::path source_folder;  ///< config.json, tokenizer files and the like are taken from here
  std::filesystem::path out;            ///< must not exist, or be an empty folder
  /// What config.json gains: quant_method, bits, group_size, desc_act, sym, checkpoint_format, ... Its "dynamic"
  /// holds for the modules that it names.
  nlohmann::json quantization_config;
  bool v1 = true;  ///< zeros stored as z − 1 ("gptq"); false: as z ("gptq_v2")
  /// Per block the quantized modules, named as in the source without ".weight".
  std::vector<std::vector<std::string>> block_linears;
  std::function<BlockShard(std::int64_t block)> read_block;
  std::int64_t max_shard_bytes = 4'000'000'000;
  std::function<void(std::string)> progress;  ///< a line per block and file; may be empty
};

struct ArtifactFile {
  std::string name;
  std::int64_t bytes = 0;
  std::string xxh3_128;
};

struct ArtifactSummary {
  std::int64_t bytes = 0;
  std::vector<ArtifactFile> files;  ///< every file of the artifact, weights first
};

/// Writes the artifact; it appears at `out` whole or not at all, and its bytes depend on the request's content alone.
///
/// Every tensor of the source appears once: of a quantized module X the tensor X.weight becomes X.qweight, X.qzeros,
/// X.scales, X.g_idx in its place; all others keep their bytes. The order is: tensors outside the blocks in the
/// source's order, then block after block in the source's order, so one block is in memory at a time. (A block's own
/// tensors are those that share its modules' common prefix.) Exceptions keep every tensor aligned to its element, which
/// readers need: 8-byte elements come first of all, tensors whose bytes are no multiple of 4 last.
/// @throws Error (usage) when `out` exists or v1 is asked for asymmetric zeros; (input) when the source lacks a module,
///         a layer's shape does not fit the format, or a block's content is not what the plan expects; (io)
ArtifactSummary write_gptq_checkpoint(const ArtifactRequest& request);

/// A GPTQ checkpoint open for reading, ours or another tool's.
class GptqArtifact {
 public:
  /// True when the folder's config.json says quant_method "gptq". @throws Error (input) when config.json is no JSON
  static bool is_artifact(const std::filesystem::path& folder);
  /// @throws Error (input) when it is not a GPTQ checkpoint or has settings that we cannot read
  static GptqArtifact open(const std::filesystem::path& folder);

  /// Of the modules that "dynamic" does not name.
  int bits() const { return base_.bits; }
  std::int64_t group_size() const { return base_.group_size; }
  bool sym() const { return base_.sym; }
  bool desc_act() const { return base_.desc_act; }
  ZeroFormat zero_format() const { return zero_format_; }
  /// The whole quantization_config.
  const nlohmann::json& settings() const { return settings_; }
  const CheckpointReader& tensors() const { return *tensors_; }

  /// True when the module has a `qweight`.
  bool has_linear(std::string_view name) const;
  /// The module's settings: the checkpoint's, or what its "dynamic" says; nullopt where that leaves it unquantized.
  std::optional<GptqLayerSettings> layer_settings(const std::string& name) const;
  /// All modules with a `qweight`, in file order.
  std::vector<std::string> linear_names() const;
  /// The module with its zeros decoded; `record` is null. A file without g_idx has the trivial one.
  /// @throws Error (input) for missing tensors, wrong types or shapes, and values out of range
  PackedLinear read_linear(const std::string& name) const;

 private:
  GptqArtifact() = default;

  std::unique_ptr<CheckpointReader> tensors_;
  nlohmann::json settings_;
  GptqLayerSettings base_;
  GptqDynamic dynamic_;
  ZeroFormat zero_format_ = ZeroFormat::v1;
};

}  // namespace gptqd::io
