/// @file LLaMA 1, 2 and 3 (arXiv:2302.13971, 2407.21783), and what borrows its architecture: SmolLM2, Yi, TinyLlama.
#include "pipeline/families/rotary_decoder.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_llama(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("LLaMA", json);
  const bool attention_bias = config.get_or<bool>("attention_bias", false);
  return describe_rotary_decoder(config, tensors,
                                 {.qkv_bias = attention_bias,
                                  .attention_out_bias = attention_bias,
                                  .mlp_bias = config.get_or<bool>("mlp_bias", false)});
}

}  // namespace gptqd::pipeline
