/// @file Mistral (arXiv:2310.06825): LLaMA with a sliding window in every block.
#include "pipeline/families/rotary_decoder.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_mistral(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("Mistral", json);
  return describe_rotary_decoder(config, tensors, {.windows = sliding_windows(config, true, 0)});
}

}  // namespace gptqd::pipeline
