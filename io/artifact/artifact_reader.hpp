#pragma once
/// @file Quantized models open for reading, ours or other tools': GPTQ checkpoints (v1, v2) and compressed-tensors.
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/artifact/artifact_format.hpp"
#include "io/artifact/content.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/packed_linear.hpp"

namespace gptqd::io {

/// All reading is thread-safe.
class ArtifactReader {
 public:
  /// True when the folder's config.json has a quantization_config. @throws Error (input) when config.json is no JSON
  static bool is_artifact(const std::filesystem::path& folder);
  /// @throws Error (input) when it is of no format that we read, has settings that we cannot read, or holds links that
  ///         lead out of it
  static std::unique_ptr<ArtifactReader> open(const std::filesystem::path& folder);

  virtual ~ArtifactReader() = default;

  /// gptq, gptq_v2 or compressed_tensors.
  virtual ArtifactFormat format() const = 0;
  /// The whole quantization_config.
  const nlohmann::json& quantization_config() const { return quantization_config_; }
  const CheckpointReader& tensors() const { return *tensors_; }

  bool has_linear(std::string_view name) const;
  /// All quantized modules, in file order.
  std::vector<std::string> linear_names() const;
  /// The names of all tensors that belong to no quantized module, biases included, in file order.
  std::vector<std::string> passing_names() const;
  /// What quantization_config says of a module, `reordered` too; nullopt where it leaves a module of that name
  /// unquantized. @throws Error (input) for settings that we cannot read
  virtual std::optional<LayerSettings> settings(const std::string& name) const = 0;
  /// The module's format by its tensors' shapes and its g_idx; the codes are not read.
  /// @throws Error (input) for missing tensors, wrong types or shapes, and where settings() says otherwise
  virtual LayerFormat layer(const std::string& name) const = 0;
  /// The module with its zeros decoded; `record` is null. A file without g_idx has the trivial one.
  /// @throws Error (input) for what layer() throws, and for values out of range
  virtual PackedLinear read_linear(const std::string& name) const = 0;

 protected:
  /// settings(), where the files hold the module packed. @throws Error (input) where it is said to be unquantized
  LayerSettings packed_settings(const std::string& name) const;

  /// @param marker    ends the name of the tensor that every quantized module has: ".qweight"
  /// @param suffixes  of all tensors that stand for X.weight
  ArtifactReader(nlohmann::json quantization_config, std::unique_ptr<CheckpointReader> tensors, std::string marker,
                 std::vector<std::string> suffixes);

 private:
  nlohmann::json quantization_config_;
  std::unique_ptr<CheckpointReader> tensors_;
  std::string marker_;
  std::vector<std::string> suffixes_;
};

}  // namespace gptqd::io
