/// @file Qwen2 and Qwen2.5 (arXiv:2407.10671): LLaMA with biases of q, k and v, and a window in the later blocks if
/// asked.
#include "pipeline/families/rotary_decoder.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_qwen2(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("Qwen2", json);
  const bool windowed = config.get_or<bool>("use_sliding_window", false);
  return describe_rotary_decoder(
      config, tensors,
      {.qkv_bias = true,
       .windows = sliding_windows(config, windowed, config.get_or<std::int64_t>("max_window_layers", 28))});
}

}  // namespace gptqd::pipeline
