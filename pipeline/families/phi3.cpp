/// @file Phi-3 (arXiv:2404.14219): LLaMA with q, k, v in one tensor and gate and up in another.
#include "pipeline/families/rotary_decoder.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_phi3(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("Phi-3", json);
  return describe_rotary_decoder(config, tensors, {.fused = true, .windows = sliding_windows(config, true, 0)});
}

}  // namespace gptqd::pipeline
