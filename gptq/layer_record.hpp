#pragma once
/// @file The machine-readable account of one quantized linear.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace gptqd::gptq {

/// Losses are tr(δHδᵀ)/tr(WHWᵀ), H = XᵀX undamped, δ = Ŵ − W.
struct LayerRecord {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t tokens = 0;            ///< calibration tokens behind H; 0 without H
  double damping = 0;                 ///< λ that succeeded
  int retries = 0;                    ///< steps of the damping ladder beyond the first
  bool fallback = false;              ///< quantized by RTN because no damping up to 1 made H positive definite
  std::optional<double> loss;         ///< of the result; absent without H
  std::optional<double> rtn_loss;     ///< of round-to-nearest on grids found from W with the same settings
  std::optional<double> weight_norm;  ///< tr(WHWᵀ), the denominator
  double min_scale = 0;
  double max_scale = 0;
  std::int64_t saturated_codes = 0;  ///< codes at 0 or 2^bits − 1, more than half a step from their weight
  std::int64_t dead_columns = 0;     ///< columns with H_ii = 0
  double seconds = 0;                ///< this linear's share of its group, wall; never part of the artifact or shard

  /// Everything but `seconds`: what a shard stores.
  nlohmann::json to_json() const;
  static LayerRecord from_json(const nlohmann::json& json);
};

}  // namespace gptqd::gptq
