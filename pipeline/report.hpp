#pragma once
/// @file The account of a run: settings, layers, seconds, memory. What depends on time and place stands here only.
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "io/shard_store.hpp"
#include "pipeline/model_spec.hpp"
#include "pipeline/plan.hpp"

namespace gptqd::pipeline {

/// Collects the layers' records as shards pass by.
class LayerTable {
 public:
  void add(const io::BlockShard& shard);
  /// One linear. @param seconds  null where this is not known
  void add(std::int64_t block, nlohmann::json record, nlohmann::json seconds);

  /// One object a linear, with its block, and its seconds where this is known.
  const nlohmann::json& layers() const { return layers_; }
  /// Seconds of the blocks' parts, from shards that know them: {"block", "forward", "hessian", ..., "total"}.
  const nlohmann::json& block_seconds() const { return block_seconds_; }
  /// exp(mean(log(loss / rtn_loss))) over the linears that have both, above zero.
  std::optional<double> loss_ratio() const;
  std::int64_t fallbacks() const;
  /// Names of the linears that fell back to round-to-nearest.
  std::vector<std::string> fallback_names() const;

 private:
  nlohmann::json layers_ = nlohmann::json::array();
  nlohmann::json block_seconds_ = nlohmann::json::array();
};

/// Multiplications and additions of one block's quantization over all calibration tokens: the forward pass once (2 T m
/// n a linear), XᵀX's lower half (T n² a group), the factorization (n³/3 a group), the solve (m n² a linear).
double model_flops(const BlockSpec& block, std::int64_t tokens);

}  // namespace gptqd::pipeline
