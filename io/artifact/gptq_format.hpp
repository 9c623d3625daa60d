#pragma once
/// @file GPTQ checkpoints, v1 and v2: X.qweight, X.qzeros, X.scales, X.g_idx (docs/formats.md).
#include "io/artifact/artifact_format.hpp"
#include "io/artifact/artifact_reader.hpp"
#include "io/artifact/gptq_dynamic.hpp"

namespace gptqd::io {

class GptqFormat final : public TensorFormat {
 public:
  explicit GptqFormat(ZeroFormat zeros) : zeros_(zeros) {}

  /// v1 holds no asymmetric zeros: a zero of 0 wraps, and readers disagree on what it means.
  std::optional<std::string> obstacle(const LayerFormat& layer) const override;
  std::vector<FormatTensor> tensors(const LayerFormat& layer) const override;
  std::vector<OwnedBytes> bytes(PackedLinear linear) const override;
  nlohmann::json quantization_config(const ArtifactContent& content) const override;

 private:
  ZeroFormat zeros_;
};

class GptqReader final : public ArtifactReader {
 public:
  /// @throws Error (input) for settings that we cannot read
  /// @param dynamic  quantization_config's "dynamic" in the file's order, or null
  GptqReader(nlohmann::json quantization_config, const nlohmann::ordered_json& dynamic,
             std::unique_ptr<CheckpointReader> tensors, const std::string& where);

  ArtifactFormat format() const override {
    return zeros_ == ZeroFormat::v1 ? ArtifactFormat::gptq : ArtifactFormat::gptq_v2;
  }
  std::optional<LayerSettings> settings(const std::string& name) const override;
  LayerFormat layer(const std::string& name) const override;
  PackedLinear read_linear(const std::string& name) const override;

 private:
  LayerSettings settings_;  ///< of the modules that `dynamic_` does not name
  GptqDynamic dynamic_;
  std::vector<std::string> quantized_;  ///< parts of the names of quantized modules; empty: any
  ZeroFormat zeros_ = ZeroFormat::v1;
};

}  // namespace gptqd::io
