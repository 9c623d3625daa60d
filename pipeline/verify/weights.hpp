#pragma once
/// @file One packed linear, looked at by itself and beside the weights that it was made from.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/packed_linear.hpp"

namespace gptqd::pipeline {

/// Elements of a floating type as float. @pre from holds to.size() elements of that type
void widen(DType dtype, const std::byte* from, std::span<float> to);

/// What can be said of codes and scales alone.
struct CodeStatistics {
  double min_scale = 0;
  double max_scale = 0;
  std::int64_t zero_scales = 0;  ///< groups that are 0 whatever their codes
  std::int64_t negative_scales = 0;
  double saturated = 0;   ///< share of the codes that are 0 or 2^bits − 1
  bool one_code = false;  ///< all codes are the same
};

/// δ = Ŵ − W, s the scale of the element's group: the step between codes.
struct WeightDifference {
  double relative_error = 0;    ///< ‖δ‖ / ‖W‖
  double error_in_steps = 0;    ///< ‖δ‖ / ‖s‖·√12: 1 for plain rounding
  double mean_step = 0;         ///< mean of δ/s: near 0; 1 or −1 where zeros are off by one
  double worst_step = 0;        ///< largest |δ|/s
  std::int64_t far_codes = 0;   ///< codes at 0 or 2^bits − 1, more than half a step from their weight
  std::int64_t bad_rows = 0;    ///< rows with ‖δ‖ > ‖W‖, of those that are no zeros
  std::int64_t non_finite = 0;  ///< elements of Ŵ or W that are NaN or infinite
};

/// @param codes  [rows, cols] of the linear
CodeStatistics code_statistics(const io::PackedLinear& linear, const std::vector<std::uint8_t>& codes);

/// Reads the weight by pieces. @pre its shape is [linear.rows, linear.cols], and its type a floating one
WeightDifference weight_difference(const io::PackedLinear& linear, const std::vector<std::uint8_t>& codes,
                                   const io::CheckpointReader& source, const io::TensorInfo& weight);

nlohmann::json to_json(const CodeStatistics& statistics);
nlohmann::json to_json(const WeightDifference& difference);

}  // namespace gptqd::pipeline
