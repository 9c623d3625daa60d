#pragma once
/// @file compressed-tensors "pack-quantized": X.weight_packed, X.weight_scale, X.weight_zero_point, X.weight_shape.
///
/// The words are those of a GPTQ v2 checkpoint, transposed: codes packed along K, zeros along N (docs/formats.md).
#include "io/artifact/artifact_format.hpp"
#include "io/artifact/artifact_reader.hpp"
#include "io/tokenizer/regex.hpp"

namespace gptqd::io {

class CompressedTensorsFormat final : public TensorFormat {
 public:
  /// @param dtype  the model's: that of the scales
  explicit CompressedTensorsFormat(DType dtype) : dtype_(dtype) {}

  /// Dynamic act-order is refused by compressed-tensors itself from 0.19 on.
  std::optional<std::string> obstacle(const LayerFormat& layer) const override;
  std::vector<FormatTensor> tensors(const LayerFormat& layer) const override;
  std::vector<OwnedBytes> bytes(PackedLinear linear) const override;
  nlohmann::json quantization_config(const ArtifactContent& content) const override;

 private:
  DType dtype_;
};

/// Reads symmetric and asymmetric grids, zeros packed or as int8, groups or channels, and `actorder: group` with its
/// weight_g_idx. Each module takes its settings from the config group that compressed-tensors would choose: one that
/// targets its name, else one whose regular expression ("re:...") fits, else one that targets "Linear".
class CompressedTensorsReader final : public ArtifactReader {
 public:
  /// @throws Error (input) for settings that we cannot read
  CompressedTensorsReader(nlohmann::json quantization_config, std::unique_ptr<CheckpointReader> tensors,
                          const std::string& where);

  ArtifactFormat format() const override { return ArtifactFormat::compressed_tensors; }
  std::optional<LayerSettings> settings(const std::string& name) const override;
  LayerFormat layer(const std::string& name) const override;
  PackedLinear read_linear(const std::string& name) const override;

 private:
  struct Target {
    std::string text;
    std::optional<Regex> pattern;
    LayerSettings settings;
  };
  static Target make_target(std::string text, const LayerSettings& settings, const std::string& where);
  void add_group(const std::string& name, const nlohmann::json& group, const std::string& where);

  std::vector<Target> targets_;
  std::vector<Target> ignored_;  ///< without settings
};

}  // namespace gptqd::io
