#pragma once
/// @file The formats of artifacts: which there are, and how each holds a quantized linear.
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/artifact/content.hpp"
#include "io/safetensors.hpp"

namespace gptqd::io {

enum class ArtifactFormat : std::uint8_t {
  gptq,                ///< GPTQ checkpoint, zeros stored as z − 1
  gptq_v2,             ///< GPTQ checkpoint, zeros stored as z
  compressed_tensors,  ///< compressed-tensors "pack-quantized"
  gguf,                ///< one file for llama.cpp
  safetensors_float,   ///< dequantized to the model's type
};

/// "gptq", "gptq_v2", "compressed-tensors", "gguf", "safetensors-float".
std::string_view name_of(ArtifactFormat format);
/// @throws Error (usage) naming the option and the formats
ArtifactFormat artifact_format_from_name(std::string_view name);

/// One of the tensors that stand for the weight of a quantized linear.
struct FormatTensor {
  TensorDeclaration declaration;
  std::vector<std::byte> fixed = {};  ///< its bytes, where the layer's shape alone decides them
};

/// How one of the formats that lie in a Hugging Face folder holds a quantized linear. Immutable and thread-safe.
class TensorFormat {
 public:
  virtual ~TensorFormat() = default;

  /// Why the format cannot hold such a layer without loss, in words and with the formats that can; nullopt when it can.
  virtual std::optional<std::string> obstacle(const LayerFormat& layer) const = 0;
  /// The tensors that stand for X.weight, in the order in which they are written. @pre no obstacle
  virtual std::vector<FormatTensor> tensors(const LayerFormat& layer) const = 0;
  /// The bytes of those that are not fixed, in their order. @pre the linear is valid and has the settings that were
  /// declared
  /// @throws Error (input) for values that the format cannot hold without loss
  virtual std::vector<OwnedBytes> bytes(PackedLinear linear) const = 0;
  /// What config.json's quantization_config says; null where the format has none.
  /// @throws Error (usage) for layers whose settings differ in a way that the format cannot express
  virtual nlohmann::json quantization_config(const ArtifactContent& content) const = 0;
};

/// @pre format is not gguf
/// @param dtype  the model's
std::unique_ptr<TensorFormat> make_tensor_format(ArtifactFormat format, DType dtype);

}  // namespace gptqd::io
