#pragma once
/// @file What the LLaMA-like families have in common: RMS norms, rotary positions, grouped queries, a gated MLP.
#include "pipeline/families/config.hpp"

namespace gptqd::pipeline {

/// In what the members of the kin differ.
struct RotaryDecoderTraits {
  bool qkv_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;
  bool query_key_norms = false;         ///< RMS norms `self_attn.{q,k}_norm` over each head
  bool fused = false;                   ///< `qkv_proj` and `gate_up_proj` in one tensor each
  std::vector<std::int64_t> windows{};  ///< of each block, 0: none; empty: none anywhere
};

/// Names: `model.layers.i.{input_layernorm, self_attn.*, post_attention_layernorm, mlp.*}`, `model.norm`,
/// `model.embed_tokens`, `lm_head`; a file without `model.` in front is read as well.
ModelSpec describe_rotary_decoder(const FamilyConfig& config, const io::CheckpointReader& tensors,
                                  const RotaryDecoderTraits& traits);

/// Windows of all blocks: `sliding_window` in the blocks that `layer_types` names "sliding_attention", or else in those
/// from `first` on; none where `enabled` is false.
/// @throws Error (input) for a layer type other than full_attention and sliding_attention
std::vector<std::int64_t> sliding_windows(const FamilyConfig& config, bool enabled, std::int64_t first);

}  // namespace gptqd::pipeline
