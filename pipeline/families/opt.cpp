/// @file OPT (arXiv:2205.01068): pre-norm, and the 350m model's post-norm with projected embeddings.
#include <cmath>

#include "io/json_file.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

namespace {

constexpr std::string_view where = "config.json";

void refuse_unless(bool supported, std::string_view setting, std::string_view expected) {
  if (!supported) {
    throw Error(ErrorKind::input,
                fmt::format("config.json: OPT with {} is not supported; expected {}", setting, expected));
  }
}

/// Checkpoints of the Hub name their tensors with "model.decoder." or "decoder."; older exports with neither.
std::string find_prefix(const io::CheckpointReader& tensors) {
  for (const std::string prefix : {"model.decoder.", "decoder.", ""}) {
    if (tensors.find(prefix + "embed_tokens.weight") != nullptr) {
      return prefix;
    }
  }
  return "model.decoder.";  // the check of tensors then names what is missing
}

}  // namespace

ModelSpec describe_opt(const nlohmann::json& config, const io::CheckpointReader& tensors) {
  const auto activation = io::get_or<std::string>(config, "activation_function", "relu", where);
  refuse_unless(activation == "relu", fmt::format("activation_function \"{}\"", activation), "\"relu\"");
  refuse_unless(io::get_or<bool>(config, "layer_norm_elementwise_affine", true, where),
                "layer_norm_elementwise_affine false", "true");

  const std::string prefix = find_prefix(tensors);
  const auto hidden = io::get<std::int64_t>(config, "hidden_size", where);
  const auto ffn = io::get<std::int64_t>(config, "ffn_dim", where);
  const auto heads = io::get<std::int64_t>(config, "num_attention_heads", where);
  const auto layers = io::get<std::int64_t>(config, "num_hidden_layers", where);
  const bool bias = io::get_or<bool>(config, "enable_bias", true, where);
  const bool norm_before = io::get_or<bool>(config, "do_layer_norm_before", true, where);
  const bool no_final_norm = io::get_or<bool>(config, "_remove_final_layer_norm", false, where);
  if (hidden <= 0 || ffn <= 0 || heads <= 0 || layers <= 0 || layers > 10'000 || hidden % heads != 0) {
    throw Error(
        ErrorKind::input,
        fmt::format(
            "config.json: hidden_size {}, ffn_dim {}, num_attention_heads {}, num_hidden_layers {} make no model; "
            "expected positive numbers, heads dividing hidden_size",
            hidden, ffn, heads, layers));
  }

  ModelSpec spec;
  spec.model_type = "opt";
  spec.hidden = hidden;
  spec.vocabulary = io::get<std::int64_t>(config, "vocab_size", where);
  spec.max_positions = io::get<std::int64_t>(config, "max_position_embeddings", where);
  spec.embedding_width = io::get_or<std::int64_t>(config, "word_embed_proj_dim", hidden, where);
  spec.token_table = prefix + "embed_tokens.weight";
  spec.dtype = tensors.at(spec.token_table).dtype;
  // The table has two rows more than there are positions: position p is row p + 2.
  spec.positions =
      PositionTable{.tensor = prefix + "embed_positions.weight", .rows = spec.max_positions + 2, .offset = 2};
  if (spec.embedding_width != hidden) {
    spec.project_in =
        LinearSpec{.module = prefix + "project_in", .rows = hidden, .cols = spec.embedding_width, .bias = false};
    spec.project_out =
        LinearSpec{.module = prefix + "project_out", .rows = spec.embedding_width, .cols = hidden, .bias = false};
  }
  if (norm_before && !no_final_norm) {
    spec.final_norm = NormSpec{.module = prefix + "final_layer_norm", .width = hidden};
  }
  const bool tied = io::get_or<bool>(config, "tie_word_embeddings", true, where);
  spec.head = tied ? spec.token_table : "lm_head.weight";

  for (std::int64_t i = 0; i < layers; ++i) {
    BlockSpec block;
    block.prefix = fmt::format("{}layers.{}.", prefix, i);
    block.norm_placement = norm_before ? NormPlacement::before : NormPlacement::after;
    block.attention_norm = {.module = block.prefix + "self_attn_layer_norm", .width = hidden};
    block.mlp_norm = {.module = block.prefix + "final_layer_norm", .width = hidden};
    // The published model scales q after its bias; scaling the scores instead is the same number.
    const auto head_dim = hidden / heads;
    block.attention = {.heads = heads,
                       .kv_heads = heads,
                       .head_dim = head_dim,
                       .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      block.attention_in.push_back(
          {.module = block.prefix + "self_attn." + name, .rows = hidden, .cols = hidden, .bias = bias});
    }
    block.attention_out = {.module = block.prefix + "self_attn.out_proj", .rows = hidden, .cols = hidden, .bias = bias};
    block.mlp_in = {.module = block.prefix + "fc1", .rows = ffn, .cols = hidden, .bias = bias};
    block.mlp_out = {.module = block.prefix + "fc2", .rows = hidden, .cols = ffn, .bias = bias};
    block.activation = Activation::relu;
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace gptqd::pipeline
