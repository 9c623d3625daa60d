#include "gptq/layer_record.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/base/error.hpp"

namespace gptqd::gptq {

namespace {

nlohmann::json optional_number(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

std::optional<double> optional_number(const nlohmann::json& json) {
  return json.is_null() ? std::nullopt : std::optional<double>(json.get<double>());
}

}  // namespace

nlohmann::json LayerRecord::to_json() const {
  return {{"name", name},
          {"rows", rows},
          {"cols", cols},
          {"tokens", tokens},
          {"damping", damping},
          {"retries", retries},
          {"fallback", fallback},
          {"loss", optional_number(loss)},
          {"rtn_loss", optional_number(rtn_loss)},
          {"weight_norm", optional_number(weight_norm)},
          {"min_scale", min_scale},
          {"max_scale", max_scale},
          {"saturated_codes", saturated_codes},
          {"dead_columns", dead_columns}};
}

LayerRecord LayerRecord::from_json(const nlohmann::json& json) {
  try {
    LayerRecord record;
    json.at("name").get_to(record.name);
    json.at("rows").get_to(record.rows);
    json.at("cols").get_to(record.cols);
    json.at("tokens").get_to(record.tokens);
    json.at("damping").get_to(record.damping);
    json.at("retries").get_to(record.retries);
    json.at("fallback").get_to(record.fallback);
    record.loss = optional_number(json.at("loss"));
    record.rtn_loss = optional_number(json.at("rtn_loss"));
    record.weight_norm = optional_number(json.at("weight_norm"));
    json.at("min_scale").get_to(record.min_scale);
    json.at("max_scale").get_to(record.max_scale);
    json.at("saturated_codes").get_to(record.saturated_codes);
    json.at("dead_columns").get_to(record.dead_columns);
    return record;
  } catch (const nlohmann::json::exception& error) {
    throw Error(
        ErrorKind::input,
        fmt::format("layer record: got \"{}\"; the shard was written by another version: remove it, and its block "
                    "is quantized again",
                    error.what()));
  }
}

}  // namespace gptqd::gptq
