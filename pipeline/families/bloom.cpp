/// @file BLOOM (arXiv:2211.05100): ALiBi, fused q, k, v, a norm behind the embeddings.
#include <bit>
#include <cmath>

#include "pipeline/families/config.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

namespace {

/// ALiBi's slopes (arXiv:2108.12409): base, base², ... for the largest power of two P <= heads, base = 2^(−8 / P); the
/// heads that are left take the odd powers of the base for 2P.
std::vector<float> alibi_slopes(std::int64_t heads) {
  const auto powers = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  const auto base_of = [](std::int64_t count) { return std::exp2(-8.0 / static_cast<double>(count)); };
  std::vector<float> slopes;
  for (std::int64_t i = 1; i <= powers; ++i) {
    slopes.push_back(static_cast<float>(std::pow(base_of(powers), static_cast<double>(i))));
  }
  for (std::int64_t i = 1; i <= heads - powers; ++i) {
    slopes.push_back(static_cast<float>(std::pow(base_of(2 * powers), static_cast<double>(2 * i - 1))));
  }
  return slopes;
}

}  // namespace

ModelSpec describe_bloom(const nlohmann::json& json, const io::CheckpointReader& tensors) {
  const FamilyConfig config("BLOOM", json);
  const auto hidden = config.size({"hidden_size", "n_embed"});
  const auto heads = config.size({"n_head", "num_attention_heads"});
  const auto layers = config.layers({"n_layer", "num_hidden_layers"});
  config.require(hidden % heads == 0, fmt::format("hidden_size {} and n_head {}", hidden, heads), "a multiple");
  const auto head_dim = hidden / heads;
  const float epsilon = config.epsilon("layer_norm_epsilon", 1e-5);
  const bool residual_behind_norm = config.get_or<bool>("apply_residual_connection_post_layernorm", false);
  const std::string prefix = find_prefix(tensors, {"transformer.", ""}, "word_embeddings.weight");
  const auto norm = [&](const std::string& module) {
    return NormSpec{.module = module, .width = hidden, .epsilon = epsilon};
  };
  const auto linear = [](const std::string& module, std::int64_t rows, std::int64_t cols) {
    return LinearSpec{.module = module, .rows = rows, .cols = cols, .bias = true};
  };

  ModelSpec spec;
  spec.model_type = config.get<std::string>("model_type");
  spec.hidden = hidden;
  spec.vocabulary = config.size("vocab_size");
  spec.max_positions = unlimited_positions;
  spec.token_table = prefix + "word_embeddings.weight";
  spec.embedding_width = hidden;
  spec.dtype = tensors.at(spec.token_table).dtype;
  spec.embedding_norm = norm(prefix + "word_embeddings_layernorm");
  spec.final_norm = norm(prefix + "ln_f");
  spec.head = head_tensor(config, spec.token_table, true);

  for (std::int64_t i = 0; i < layers; ++i) {
    BlockSpec block;
    block.prefix = fmt::format("{}h.{}.", prefix, i);
    block.norm_placement = residual_behind_norm ? NormPlacement::before_residual : NormPlacement::before;
    block.attention_norm = norm(block.prefix + "input_layernorm");
    block.mlp_norm = norm(block.prefix + "post_attention_layernorm");
    block.attention = {.heads = heads,
                       .kv_heads = heads,
                       .head_dim = head_dim,
                       .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                       .layout = HeadLayout::by_head,
                       .query_norm = std::nullopt,
                       .key_norm = std::nullopt,
                       .alibi_slopes = alibi_slopes(heads)};
    block.attention_in = {linear(block.prefix + "self_attention.query_key_value", 3 * hidden, hidden)};
    block.attention_out = linear(block.prefix + "self_attention.dense", hidden, hidden);
    block.mlp_in = {linear(block.prefix + "mlp.dense_h_to_4h", 4 * hidden, hidden)};
    block.mlp_out = linear(block.prefix + "mlp.dense_4h_to_h", hidden, 4 * hidden);
    block.activation = Activation::gelu_tanh;
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

}  // namespace gptqd::pipeline
