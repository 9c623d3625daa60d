/// @file Qwen3 (arXiv:2505.09388): LLaMA with norms of each head's q and k, and a head_dim of its own.
#include "pipeline/families/rotary_decoder.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_qwen3(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("Qwen3", json);
  const bool attention_bias = config.get_or<bool>("attention_bias", false);
  const bool windowed = config.get_or<bool>("use_sliding_window", false);
  return describe_rotary_decoder(
      config, tensors,
      {.qkv_bias = attention_bias,
       .attention_out_bias = attention_bias,
       .query_key_norms = true,
       .windows = sliding_windows(config, windowed, config.get_or<std::int64_t>("max_window_layers", 28))});
}

}  // namespace gptqd::pipeline
