/// @file OPT (arXiv:2205.01068): pre-norm, and the 350m model's post-norm with projected embeddings.
#include <cmath>

#include "pipeline/families/config.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

ModelSpec describe_opt(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("OPT", json);
  const auto activation = config.activation("activation_function", "relu", {"relu"});
  config.require(config.get_or<bool>("layer_norm_elementwise_affine", true), "layer_norm_elementwise_affine false",
                 "true");
  // Checkpoints of the Hub name their tensors with "model.decoder." or "decoder."; older exports with neither.
  const std::string prefix = find_prefix(tensors, {"model.decoder.", "decoder.", ""}, "embed_tokens.weight");
  const auto hidden = config.size("hidden_size");
  const auto ffn = config.size("ffn_dim");
  const auto heads = config.size("num_attention_heads");
  const auto layers = config.layers({"num_hidden_layers"});
  config.require(hidden % heads == 0, fmt::format("hidden_size {} and num_attention_heads {}", hidden, heads),
                 "a multiple");
  const auto head_dim = hidden / heads;
  const bool bias = config.get_or<bool>("enable_bias", true);
  const bool norm_before = config.get_or<bool>("do_layer_norm_before", true);
  const auto linear = [](const std::string& module, std::int64_t rows, std::int64_t cols, bool with_bias) {
    return LinearSpec{.module = module, .rows = rows, .cols = cols, .bias = with_bias};
  };

  ModelSpec spec;
  spec.model_type = config.get<std::string>("model_type");
  spec.hidden = hidden;
  spec.vocabulary = config.size("vocab_size");
  spec.max_positions = config.size("max_position_embeddings");
  spec.embedding_width = config.size_or("word_embed_proj_dim", hidden);
  spec.token_table = prefix + "embed_tokens.weight";
  spec.dtype = tensors.at(spec.token_table).dtype;
  // The table has two rows more than there are positions: position p is row p + 2.
  spec.positions =
      PositionTable{.tensor = prefix + "embed_positions.weight", .rows = spec.max_positions + 2, .offset = 2};
  if (spec.embedding_width != hidden) {
    spec.project_in = linear(prefix + "project_in", hidden, spec.embedding_width, false);
    spec.project_out = linear(prefix + "project_out", spec.embedding_width, hidden, false);
  }
  if (norm_before && !config.get_or<bool>("_remove_final_layer_norm", false)) {
    spec.final_norm = NormSpec{.module = prefix + "final_layer_norm", .width = hidden};
  }
  spec.head = head_tensor(config, spec.token_table, true);

  for (std::int64_t i = 0; i < layers; ++i) {
    BlockSpec block;
    block.prefix = fmt::format("{}layers.{}.", prefix, i);
    block.norm_placement = norm_before ? NormPlacement::before : NormPlacement::after;
    block.attention_norm = {.module = block.prefix + "self_attn_layer_norm", .width = hidden};
    block.mlp_norm = {.module = block.prefix + "final_layer_norm", .width = hidden};
    // The published model scales q after its bias; scaling the scores instead is the same number.
    block.attention.heads = heads;
    block.attention.kv_heads = heads;
    block.attention.head_dim = head_dim;
    block.attention.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      block.attention_in.push_back(linear(block.prefix + "self_attn." + name, hidden, hidden, bias));
    }
    block.attention_out = linear(block.prefix + "self_attn.out_proj", hidden, hidden, bias);
    block.mlp_in = {linear(block.prefix + "fc1", ffn, hidden, bias)};
    block.mlp_out = linear(block.prefix + "fc2", hidden, ffn, bias);
    block.activation = activation;
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace gptqd::pipeline
