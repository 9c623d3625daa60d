#pragma once
/// @file Dequantized weights: a float checkpoint for engines without kernels.
#include "io/artifact/artifact_format.hpp"

namespace gptqd::io {

/// X.weight = scale · (q − zero), rounded once to the model's type: the numbers that `eval` of the packed artifact
/// computes with.
class FloatFormat final : public TensorFormat {
 public:
  explicit FloatFormat(DType dtype) : dtype_(dtype) {}

  std::optional<std::string> obstacle(const LayerFormat& layer) const override;
  std::vector<FormatTensor> tensors(const LayerFormat& layer) const override;
  std::vector<OwnedBytes> bytes(PackedLinear linear) const override;
  nlohmann::json quantization_config(const ArtifactContent&) const override { return nullptr; }

 private:
  DType dtype_;
};

}  // namespace gptqd::io
