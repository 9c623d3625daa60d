#pragma once
/// @file A transformer as data: shapes, tensor names and formulas, whatever family it comes from.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/linear.hpp"

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

struct NormSpec {
  std::string module;
  std::int64_t width = 0;
  float epsilon = 1e-5f;

  std::string weight_name() const { return module + ".weight"; }
  std::string bias_name() const { return module + ".bias"; }
};

struct AttentionSpec {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0f;  ///< of the scores
};

/// Where a block's norms stand.
enum class NormPlacement : std::uint8_t {
  before,  ///< h += f(norm(h))
  after,   ///< h = norm(h + f(h))
};

/// Parts of a decoder block that end where a group of linears shares one input.
enum class Phase : std::uint8_t { attention_in, attention_out, mlp_in, mlp_out };
inline constexpr std::array phases{Phase::attention_in, Phase::attention_out, Phase::mlp_in, Phase::mlp_out};
std::string_view name_of(Phase phase);

/// One decoder block. attention_in holds q, k, v in this order.
struct BlockSpec {
  std::string prefix;  ///< "model.decoder.layers.3."
  NormPlacement norm_placement = NormPlacement::before;
  NormSpec attention_norm;
  NormSpec mlp_norm;
  AttentionSpec attention;
  std::vector<LinearSpec> attention_in;
  LinearSpec attention_out;
  LinearSpec mlp_in;
  LinearSpec mlp_out;
  Activation activation = Activation::relu;

  /// The linears that share a phase's input, the unit of quantization.
  std::vector<LinearSpec> group(Phase phase) const;
  /// All linears, in phase order.
  std::vector<LinearSpec> linears() const;
  /// Width of a phase's input.
  std::int64_t input_width(Phase phase) const;
};

/// A learned table of positions: row of position p is p + offset.
struct PositionTable {
  std::string tensor;
  std::int64_t rows = 0;
  std::int64_t offset = 0;
};

/// A whole decoder-only model.
struct ModelSpec {
  std::string model_type;    ///< as in config.json
  DType dtype = DType::f16;  ///< of the checkpoint's weights
  std::int64_t hidden = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;
  std::string token_table;  ///< [vocabulary, embedding_width]
  std::int64_t embedding_width = 0;
  std::optional<PositionTable> positions;  ///< [rows, hidden]
  std::optional<LinearSpec> project_in;    ///< embedding_width -> hidden
  std::optional<NormSpec> final_norm;
  std::optional<LinearSpec> project_out;  ///< hidden -> embedding_width
  std::string head;                       ///< [vocabulary, embedding_width]; the token table where tied
  std::vector<BlockSpec> blocks;

  std::int64_t parameters() const;  ///< of the blocks' linears
};

}  // namespace gptqd::pipeline
