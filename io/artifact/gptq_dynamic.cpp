#include "io/artifact/gptq_dynamic.hpp"

#include <fmt/format.h>

#include "io/json_file.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

template <class T>
std::optional<T> optional_value(const nlohmann::json& settings, const char* key, const std::string& where) {
  return settings.contains(key) ? std::optional(get<T>(settings, key, where)) : std::nullopt;
}

}  // namespace

GptqDynamic::GptqDynamic(const nlohmann::ordered_json& dynamic, const std::string& where) {
  if (dynamic.is_null()) {
    return;
  }
  if (!dynamic.is_object()) {
    throw Error(ErrorKind::input, fmt::format("{}: dynamic is no table from patterns to settings", where));
  }
  for (const auto& [key, value] : dynamic.items()) {
    const bool has_sign = key.starts_with("+:") || key.starts_with("-:");
    const std::string pattern = has_sign ? key.substr(2) : key;
    const std::string name = fmt::format("{}: dynamic \"{}\"", where, key);
    Rule rule{.pattern = Regex("\\A(?:" + pattern + ")", name),
              .quantized = !key.starts_with("-:"),
              .bits = {},
              .group_size = {},
              .sym = {},
              .reordered = {}};
    if (rule.quantized) {
      const nlohmann::json settings = value;
      if (!settings.is_object()) {
        throw Error(ErrorKind::input, fmt::format("{}: expected an object of settings", name));
      }
      rule.bits = optional_value<int>(settings, "bits", name);
      rule.group_size = optional_value<std::int64_t>(settings, "group_size", name);
      rule.sym = optional_value<bool>(settings, "sym", name);
      rule.reordered = optional_value<bool>(settings, "desc_act", name);
    }
    rules_.push_back(std::move(rule));
  }
}

std::optional<LayerSettings> GptqDynamic::apply(const LayerSettings& base, const std::string& module) const {
  for (const auto& rule : rules_) {
    if (!rule.pattern.matches(module)) {
      continue;
    }
    if (!rule.quantized) {
      return std::nullopt;
    }
    return LayerSettings{.bits = rule.bits.value_or(base.bits),
                         .group_size = rule.group_size.value_or(base.group_size),
                         .sym = rule.sym.value_or(base.sym),
                         .reordered = rule.reordered.value_or(base.reordered)};
  }
  return base;
}

}  // namespace gptqd::io
