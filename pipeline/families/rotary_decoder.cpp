#include "pipeline/families/rotary_decoder.hpp"

#include <cmath>

namespace gptqd::pipeline {

namespace {

struct Sizes {
  std::int64_t hidden = 0;
  std::int64_t mlp = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
};

Sizes read_sizes(const FamilyConfig& config) {
  Sizes sizes{.hidden = config.size("hidden_size"),
              .mlp = config.size("intermediate_size"),
              .heads = config.size("num_attention_heads")};
  sizes.kv_heads = config.size_or("num_key_value_heads", sizes.heads);
  config.require(sizes.heads % sizes.kv_heads == 0,
                 fmt::format("num_attention_heads {} and num_key_value_heads {}", sizes.heads, sizes.kv_heads),
                 "a multiple");
  config.require(config.has("head_dim") || sizes.hidden % sizes.heads == 0,
                 fmt::format("hidden_size {} and num_attention_heads {}", sizes.hidden, sizes.heads),
                 "a multiple, or head_dim");
  sizes.head_dim = config.size_or("head_dim", sizes.hidden / sizes.heads);
  return sizes;
}

LinearSpec linear(const std::string& module, std::int64_t rows, std::int64_t cols, bool bias) {
  return {.module = module, .rows = rows, .cols = cols, .bias = bias};
}

}  // namespace

ModelSpec describe_rotary_decoder(const FamilyConfig& config, const io::CheckpointReader& tensors,
                                  const RotaryDecoderTraits& traits) {
  const Sizes sizes = read_sizes(config);
  const float epsilon = config.epsilon("rms_norm_eps", 1e-6);
  const Activation activation = config.activation("hidden_act", "silu", {"silu", "swish", "gelu_pytorch_tanh"});
  const std::string prefix = find_prefix(tensors, {"model.", ""}, "embed_tokens.weight");
  const auto norm = [&](const std::string& module, std::int64_t width) {
    return NormSpec{.module = module, .width = width, .epsilon = epsilon, .kind = NormKind::rms};
  };

  ModelSpec spec;
  spec.model_type = config.get<std::string>("model_type");
  spec.hidden = sizes.hidden;
  spec.vocabulary = config.size("vocab_size");
  spec.token_table = prefix + "embed_tokens.weight";
  spec.embedding_width = sizes.hidden;
  spec.dtype = tensors.at(spec.token_table).dtype;
  const auto positions = config.size("max_position_embeddings");
  spec.rope = read_rope(config, sizes.head_dim, positions);
  // Dynamic scaling is there to go beyond the positions that the model was trained with.
  spec.max_positions = spec.rope->kind == RopeSpec::Kind::dynamic
                           ? static_cast<std::int64_t>(static_cast<double>(positions) * spec.rope->factor)
                           : positions;
  spec.final_norm = norm(prefix + "norm", sizes.hidden);
  spec.head = head_tensor(config, spec.token_table, false);

  const std::int64_t layers = config.layers({"num_hidden_layers"});
  for (std::int64_t i = 0; i < layers; ++i) {
    BlockSpec block;
    block.prefix = fmt::format("{}layers.{}.", prefix, i);
    block.attention_norm = norm(block.prefix + "input_layernorm", sizes.hidden);
    block.mlp_norm = norm(block.prefix + "post_attention_layernorm", sizes.hidden);
    auto& attention = block.attention;
    attention.heads = sizes.heads;
    attention.kv_heads = sizes.kv_heads;
    attention.head_dim = sizes.head_dim;
    attention.scale = 1.0f / std::sqrt(static_cast<float>(sizes.head_dim));
    attention.window = traits.windows.empty() ? 0 : traits.windows.at(static_cast<std::size_t>(i));
    const std::string self = block.prefix + "self_attn.";
    const std::string mlp = block.prefix + "mlp.";
    if (traits.query_key_norms) {
      attention.query_norm = norm(self + "q_norm", sizes.head_dim);
      attention.key_norm = norm(self + "k_norm", sizes.head_dim);
    }
    if (traits.fused) {
      block.attention_in = {linear(self + "qkv_proj", attention.query_width() + 2 * attention.key_width(), sizes.hidden,
                                   traits.qkv_bias)};
      block.mlp_in = {linear(mlp + "gate_up_proj", 2 * sizes.mlp, sizes.hidden, traits.mlp_bias)};
    } else {
      block.attention_in = {linear(self + "q_proj", attention.query_width(), sizes.hidden, traits.qkv_bias),
                            linear(self + "k_proj", attention.key_width(), sizes.hidden, traits.qkv_bias),
                            linear(self + "v_proj", attention.key_width(), sizes.hidden, traits.qkv_bias)};
      block.mlp_in = {linear(mlp + "gate_proj", sizes.mlp, sizes.hidden, traits.mlp_bias),
                      linear(mlp + "up_proj", sizes.mlp, sizes.hidden, traits.mlp_bias)};
    }
    block.attention_out = linear(self + "o_proj", sizes.hidden, attention.query_width(), traits.attention_out_bias);
    block.mlp_out = linear(mlp + "down_proj", sizes.hidden, sizes.mlp, traits.mlp_bias);
    block.gated = true;
    block.activation = activation;
    spec.blocks.push_back(std::move(block));
  }
  return spec;
}

std::vector<std::int64_t> sliding_windows(const FamilyConfig& config, bool enabled, std::int64_t first) {
  const auto layers = config.layers({"num_hidden_layers"});
  const std::int64_t window = enabled ? config.size_or("sliding_window", 0) : 0;
  std::vector<std::int64_t> windows;
  if (config.has("layer_types")) {
    const auto types = config.get<std::vector<std::string>>("layer_types");
    config.require(std::ssize(types) == layers, fmt::format("{} layer_types", types.size()),
                   fmt::format("one for each of {} blocks", layers));
    for (const auto& type : types) {
      config.require(type == "full_attention" || type == "sliding_attention", fmt::format("layer type \"{}\"", type),
                     "full_attention or sliding_attention");
      config.require(type == "full_attention" || config.has("sliding_window"),
                     "sliding_attention and no sliding_window", "its width");
      windows.push_back(type == "sliding_attention" ? config.size("sliding_window") : 0);
    }
    return windows;
  }
  for (std::int64_t i = 0; i < layers; ++i) {
    windows.push_back(i >= first ? window : 0);
  }
  return windows;
}

}  // namespace gptqd::pipeline
