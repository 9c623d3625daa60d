#pragma once
/// @file A transformer as data: shapes, tensor names and formulas, whatever family it comes from.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/activation.hpp"
#include "kernels/base/dtype.hpp"

namespace gptqd::pipeline {

/// A linear layer of a block: y = x Wᵀ + b.
struct LinearSpec {
  std::string module;     ///< in the checkpoint: "model.decoder.layers.3.self_attn.q_proj"
  std::int64_t rows = 0;  ///< out_features
  std::int64_t cols = 0;  ///< in_features
  bool bias = false;

  std::string weight_name() const { return module + ".weight"; }
  std::string bias_name() const { return module + ".bias"; }
};

enum class NormKind : std::uint8_t { layer, rms };

/// A layer norm with weight and bias, or an RMS norm with a weight.
struct NormSpec {
  std::string module;
  std::int64_t width = 0;
  float epsilon = 1e-5f;
  NormKind kind = NormKind::layer;

  bool has_bias() const { return kind == NormKind::layer; }
  std::string weight_name() const { return module + ".weight"; }
  std::string bias_name() const { return module + ".bias"; }
};

/// How the outputs of a block's attention_in, side by side, are cut into q, k and v.
enum class HeadLayout : std::uint8_t {
  by_projection,  ///< all heads of q, then all of k, then all of v
  by_head,        ///< q, k, v of head 0, then of head 1, ...: [heads, 3, head_dim]; as many kv heads as heads
};

struct AttentionSpec {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0f;  ///< of the scores
  HeadLayout layout = HeadLayout::by_projection;
  std::optional<NormSpec> query_norm;  ///< of each head of q, before the rotation
  std::optional<NormSpec> key_norm;
  std::vector<float> alibi_slopes;  ///< one a head; empty: none
  std::int64_t window = 0;          ///< a token sees itself and window − 1 before it; 0: all before it

  std::int64_t query_width() const { return heads * head_dim; }
  std::int64_t key_width() const { return kv_heads * head_dim; }
};

/// Where a block's norms stand.
enum class NormPlacement : std::uint8_t {
  before,           ///< h += f(norm(h))
  before_residual,  ///< h = norm(h); h += f(h)
  after,            ///< h = norm(h + f(h))
};

/// Parts of a decoder block that end where a group of linears shares one input.
enum class Phase : std::uint8_t { attention_in, attention_out, mlp_in, mlp_out };
inline constexpr std::array phases{Phase::attention_in, Phase::attention_out, Phase::mlp_in, Phase::mlp_out};
std::string_view name_of(Phase phase);

/// One decoder block: attention and MLP, each with a norm and a residual connection.
///
/// The outputs of attention_in stand side by side and are q, k and v, whether three linears make them or one. The
/// outputs of mlp_in are the input of the activation, or, where `gated`, gate and up: mlp_out sees activation(gate)·up.
struct BlockSpec {
  std::string prefix;  ///< "model.decoder.layers.3."
  NormPlacement norm_placement = NormPlacement::before;
  NormSpec attention_norm;
  NormSpec mlp_norm;
  AttentionSpec attention;
  std::vector<LinearSpec> attention_in;
  LinearSpec attention_out;
  std::vector<LinearSpec> mlp_in;
  LinearSpec mlp_out;
  bool gated = false;
  Activation activation = Activation::relu;

  /// All norms of the block.
  std::vector<NormSpec> norms() const;
  /// The linears that share a phase's input, the unit of quantization.
  std::vector<LinearSpec> group(Phase phase) const;
  /// All linears, in phase order.
  std::vector<LinearSpec> linears() const;
  /// Width of a phase's input, and of its linears' outputs side by side.
  std::int64_t input_width(Phase phase) const;
  std::int64_t output_width(Phase phase) const;
};

/// ModelSpec::max_positions of a model that takes any length.
inline constexpr std::int64_t unlimited_positions = std::int64_t{1} << 31;

/// A learned table of positions: row of position p is p + offset.
struct PositionTable {
  std::string tensor;
  std::int64_t rows = 0;
  std::int64_t offset = 0;
};

/// Rotary position embedding: which angles, from which settings of config.json (transformers' modeling_rope_utils).
struct RopeSpec {
  enum class Kind : std::uint8_t { standard, linear, dynamic, llama3, yarn, longrope };

  Kind kind = Kind::standard;
  double theta = 10000.0;
  std::int64_t width = 0;  ///< columns of a head that turn, even
  double factor = 1.0;
  std::int64_t original_positions = 0;  ///< that the model was first trained with
  double low_frequency_factor = 1.0;    ///< llama3
  double high_frequency_factor = 4.0;   ///< llama3
  double beta_fast = 32.0;              ///< yarn
  double beta_slow = 1.0;               ///< yarn
  bool truncate = true;                 ///< yarn
  double amplitude = 1.0;               ///< of cos and sin: yarn, longrope
  std::vector<double> short_factors;    ///< longrope, width / 2 of each
  std::vector<double> long_factors;
};

/// A whole decoder-only model.
struct ModelSpec {
  std::string model_type;    ///< as in config.json
  DType dtype = DType::f16;  ///< of the checkpoint's weights
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;  ///< longest window; unlimited_positions where nothing limits it
  std::string token_table;         ///< [vocabulary, embedding_width]
  std::int64_t embedding_width = 0;
  std::optional<PositionTable> positions;  ///< [rows, hidden]
  std::optional<RopeSpec> rope;
  std::optional<NormSpec> embedding_norm;  ///< of the embeddings
  std::optional<LinearSpec> project_in;    ///< embedding_width -> hidden
  std::optional<NormSpec> final_norm;
  std::optional<LinearSpec> project_out;  ///< hidden -> embedding_width
  std::string head;                       ///< [vocabulary, embedding_width]; the token table where tied
  std::vector<BlockSpec> blocks;

  std::int64_t parameters() const;  ///< of the blocks' linears
};

/// A tensor that a float checkpoint of the model holds.
struct ExpectedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
};
/// All of them, each once: embeddings, norms, blocks, head.
std::vector<ExpectedTensor> expected_tensors(const ModelSpec& model);

}  // namespace gptqd::pipeline
