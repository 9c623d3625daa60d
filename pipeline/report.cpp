#include "pipeline/report.hpp"

#include <cmath>

namespace gptqd::pipeline {

void LayerTable::add(const io::BlockShard& shard) {
  const auto seconds = io::object_of_run(shard.run, "linear_seconds");
  for (const auto& linear : shard.linears) {
    add(shard.block, linear.record, seconds.value(linear.name, nlohmann::json()));
  }
  if (auto parts = io::object_of_run(shard.run, "seconds"); !parts.empty()) {
    parts["block"] = shard.block;
    block_seconds_.push_back(std::move(parts));
  }
}

void LayerTable::add(std::int64_t block, nlohmann::json record, nlohmann::json seconds) {
  record["block"] = block;
  if (!seconds.is_null()) {
    record["seconds"] = std::move(seconds);
  }
  layers_.push_back(std::move(record));
}

std::optional<double> LayerTable::loss_ratio() const {
  double sum = 0;
  std::int64_t count = 0;
  for (const auto& layer : layers_) {
    const auto& loss = layer.at("loss");
    const auto& rtn = layer.at("rtn_loss");
    if (loss.is_number() && rtn.is_number() && loss.get<double>() > 0 && rtn.get<double>() > 0) {
      sum += std::log(loss.get<double>() / rtn.get<double>());
      ++count;
    }
  }
  return count == 0 ? std::nullopt : std::optional(std::exp(sum / static_cast<double>(count)));
}

std::int64_t LayerTable::fallbacks() const { return static_cast<std::int64_t>(fallback_names().size()); }

std::vector<std::string> LayerTable::fallback_names() const {
  std::vector<std::string> names;
  for (const auto& layer : layers_) {
    if (layer.at("fallback").get<bool>()) {
      names.push_back(layer.at("name"));
    }
  }
  return names;
}

double model_flops(const BlockSpec& block, std::int64_t tokens) {
  const auto t = static_cast<double>(tokens);
  double flops = 0;
  for (const Phase phase : phases) {
    const auto n = static_cast<double>(block.input_width(phase));
    flops += t * n * n + n * n * n / 3;
    for (const auto& linear : block.group(phase)) {
      const auto m = static_cast<double>(linear.rows);
      flops += 2 * t * m * n + m * n * n;
    }
  }
  return flops;
}

}  // namespace gptqd::pipeline
