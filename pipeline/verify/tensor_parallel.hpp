#pragma once
/// @file How a quantized model may be split over GPUs, and which kernels take the parts.
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/artifact/content.hpp"
#include "pipeline/model_spec.hpp"
#include "pipeline/verify/kernels.hpp"

namespace gptqd::pipeline {

/// The settings of a linear; nullopt where it is not quantized.
using SettingsOf = std::function<std::optional<io::LayerSettings>(const std::string& module)>;

struct KernelSummary {
  EngineKernel kernel = EngineKernel::marlin;
  std::int64_t takes = 0;  ///< tensors as engines load them
  std::int64_t pads = 0;   ///< of them, after padding
  std::int64_t tensors = 0;
  std::string first_reason;  ///< of the first tensor that it refuses or pads, with its name
};

/// An engine takes a tensor when one of its kernels does: it chooses tensor by tensor.
struct EngineSummary {
  std::string_view engine;  ///< "vLLM", "GPTQModel"
  std::int64_t takes = 0;
  std::int64_t tensors = 0;
};

/// One number of GPUs.
struct TensorParallel {
  int size = 1;
  std::vector<std::string> obstacles;  ///< why it cannot be; at most a few, each with a linear's name
  std::vector<EngineSummary> engines;  ///< empty where it cannot be
  std::vector<KernelSummary> kernels;  ///< empty where it cannot be
};

/// As vLLM and SGLang split a decoder: q, k, v, gate and up by output features, o and down by input features.
///
/// A split cuts whole heads (fewer kv heads than GPUs are repeated), whole packed words of codes and zeros, and whole
/// groups, where the input features are split and the order of columns is not dynamic.
TensorParallel split(const ModelSpec& model, io::ArtifactFormat format, const SettingsOf& settings, int size);

}  // namespace gptqd::pipeline
