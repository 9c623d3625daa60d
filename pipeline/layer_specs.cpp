#include "pipeline/layer_specs.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "io/checkpoint_reader.hpp"
#include "io/tokenizer/regex.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::pipeline {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

template <class Integer>
Integer parse_integer(const std::string& option, std::string_view what, std::string_view text) {
  Integer value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse(fmt::format("{}: {} is \"{}\", expected a number", option, what, text));
  }
  return value;
}

/// "bits:8,group:64,sym:true" into the rule.
void parse_settings(LayerRule& rule, std::string_view text) {
  std::set<std::string_view> seen;
  while (true) {
    const auto comma = text.find(',');
    const auto item = text.substr(0, comma);
    const auto colon = item.find(':');
    const auto key = item.substr(0, colon);
    const auto value = colon == std::string_view::npos ? std::string_view() : item.substr(colon + 1);
    if (!seen.insert(key).second) {
      refuse(fmt::format("{}: \"{}\" is given twice", rule.option, key));
    }
    if (key == "bits") {
      rule.bits = parse_integer<int>(rule.option, key, value);
    } else if (key == "group") {
      rule.group_size = parse_integer<std::int64_t>(rule.option, key, value);
    } else if (key == "sym" && (value == "true" || value == "false")) {
      rule.symmetric = value == "true";
    } else {
      refuse(fmt::format("{}: got \"{}\", expected bits:N, group:N, sym:true or sym:false, separated by commas",
                         rule.option, item));
    }
    if (comma == std::string_view::npos) {
      return;
    }
    text.remove_prefix(comma + 1);
  }
}

/// What stands before and behind the last "=".
std::pair<std::string, std::string> split_at_last_equals(const std::string& option, const std::string& text,
                                                         std::string_view expected) {
  const auto equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) {
    refuse(fmt::format("{}: expected {}", option, expected));
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

LayerRule parse_edge(const char* name, const std::string& text, std::int64_t LayerRule::*count) {
  LayerRule rule{.option = fmt::format("{} {}", name, text), .pattern = {}};
  const auto [number, settings] = split_at_last_equals(rule.option, text, "N=bits:8,group:64 or N=skip");
  rule.*count = parse_integer<std::int64_t>(rule.option, "the number of blocks", number);
  if (rule.*count <= 0) {
    refuse(fmt::format("{}: expected a positive number of blocks", rule.option));
  }
  if (settings == "skip") {
    rule.skip = true;
  } else {
    parse_settings(rule, settings);
  }
  return rule;
}

io::Regex compiled(const LayerRule& rule) {
  try {
    return io::Regex(rule.pattern, rule.option);
  } catch (const Error& error) {
    refuse(error.what());
  }
}

bool covers_block(const LayerRule& rule, std::int64_t block, std::int64_t blocks) {
  return (rule.first_blocks == 0 && rule.last_blocks == 0) || block < rule.first_blocks ||
         block >= blocks - rule.last_blocks;
}

gptq::QuantSpec changed(gptq::QuantSpec spec, const LayerRule& rule, bool choose_clip) {
  spec.bits = rule.bits.value_or(spec.bits);
  spec.symmetric = rule.symmetric.value_or(spec.symmetric);
  if (rule.group_size) {
    spec.group_size = *rule.group_size;
    if (choose_clip) {
      spec.clip = gptq::default_clip(spec.method, spec.group_size);
    }
  }
  return spec;
}

bool is_equal(const gptq::QuantSpec& a, const gptq::QuantSpec& b) { return gptq::to_json(a) == gptq::to_json(b); }

std::string describe(const std::optional<gptq::QuantSpec>& spec) {
  return spec ? fmt::format("{} bits, group size {}, {}", spec->bits, spec->group_size,
                            spec->symmetric ? "symmetric" : "asymmetric")
              : std::string("left as it is");
}

io::LayerSettings settings_of(const nlohmann::json& spec) {
  return {.bits = spec.at("bits"),
          .group_size = spec.at("group_size"),
          .sym = spec.at("symmetric"),
          .reordered = spec.at("act_order") == "dynamic" && spec.at("group_size") != -1};
}

}  // namespace

LayerRule parse_override(const std::string& text) {
  LayerRule rule{.option = fmt::format("--override '{}'", text), .pattern = {}};
  std::string settings;
  std::tie(rule.pattern, settings) = split_at_last_equals(rule.option, text, "REGEX=bits:8,group:64");
  parse_settings(rule, settings);
  return rule;
}

LayerRule parse_skip(const std::string& text) {
  LayerRule rule{.option = fmt::format("--skip '{}'", text), .pattern = text, .skip = true};
  if (text.empty()) {
    refuse(fmt::format("{}: expected a regex", rule.option));
  }
  return rule;
}

LayerRule parse_first_blocks(const std::string& text) {
  return parse_edge("--first-blocks", text, &LayerRule::first_blocks);
}

LayerRule parse_last_blocks(const std::string& text) {
  return parse_edge("--last-blocks", text, &LayerRule::last_blocks);
}

LayerSpecs LayerSpecs::uniform(const gptq::QuantSpec& base) {
  LayerSpecs settings;
  settings.base_ = base;
  return settings;
}

LayerSpecs LayerSpecs::resolve(const ModelSpec& model, const gptq::QuantSpec& base, const std::vector<LayerRule>& rules,
                               bool choose_clip) {
  LayerSpecs settings = uniform(base);
  std::vector<io::Regex> patterns;
  for (const auto& rule : rules) {
    patterns.push_back(compiled(rule));
  }
  std::vector<std::int64_t> matches(rules.size());
  const auto blocks = std::ssize(model.blocks);
  const auto resolved = [&](std::int64_t block, const std::string& module) {
    std::optional<gptq::QuantSpec> spec = base;
    bool skip = false;
    for (std::size_t i = 0; i < rules.size(); ++i) {
      if (covers_block(rules[i], block, blocks) && patterns[i].matches(module)) {
        ++matches[i];
        skip = skip || rules[i].skip;
        spec = changed(*spec, rules[i], choose_clip);
      }
    }
    if (skip) {
      spec.reset();
    } else {
      with_context(fmt::format("settings of {}", module), [&] { gptq::validate(*spec); });
    }
    return spec;
  };
  bool any = false;
  std::vector<std::string> names;
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (const Phase phase : phases) {
      const auto group = model.blocks[static_cast<std::size_t>(block)].group(phase);
      const auto first = resolved(block, group.front().module);
      for (const auto& linear : group) {
        names.push_back(linear.module);
        const auto spec = &linear == &group.front() ? first : resolved(block, linear.module);
        if (spec.has_value() != first.has_value() || (spec && !is_equal(*spec, *first))) {
          refuse(
              fmt::format("{} would be {}, but {} {}: engines load both as one tensor, which has one setting; choose "
                          "a pattern that fits all of these or none",
                          group.front().module, describe(first), linear.module, describe(spec)));
        }
        if (!spec || !is_equal(*spec, base)) {
          settings.others_.emplace(linear.module, spec);
        }
        any = any || spec;
      }
    }
  }
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (matches[i] == 0) {
      refuse(fmt::format("{} fits no linear of the model; their names are like {}", rules[i].option,
                         fmt::join(io::closest_names(rules[i].pattern, names), ", ")));
    }
  }
  if (!any) {
    refuse("every linear is skipped: nothing is left to quantize");
  }
  return settings;
}

const gptq::QuantSpec* LayerSpecs::find(const std::string& module) const {
  const auto other = others_.find(module);
  return other == others_.end() ? &base_ : other->second ? &*other->second : nullptr;
}

std::vector<gptq::QuantSpec> LayerSpecs::distinct() const {
  std::vector<gptq::QuantSpec> specs{base_};
  for (const auto& [module, spec] : others_) {
    if (spec && std::none_of(specs.begin(), specs.end(), [&](const auto& known) { return is_equal(known, *spec); })) {
      specs.push_back(*spec);
    }
  }
  return specs;
}

nlohmann::json LayerSpecs::to_json() const {
  const auto base = gptq::to_json(base_);
  nlohmann::json result = nlohmann::json::object();
  for (const auto& [module, spec] : others_) {
    if (!spec) {
      result[module] = nullptr;
      continue;
    }
    auto& differences = result[module] = nlohmann::json::object();
    const auto own = gptq::to_json(*spec);
    for (const auto& [key, value] : own.items()) {
      if (base.at(key) != value) {
        differences[key] = value;
      }
    }
  }
  return result;
}

io::LayerSettings base_settings(const nlohmann::json& fingerprint) { return settings_of(fingerprint.at("spec")); }

std::optional<io::LayerSettings> layer_settings(const nlohmann::json& fingerprint, const std::string& module) {
  auto spec = fingerprint.at("spec");
  if (fingerprint.contains("layers") && fingerprint.at("layers").contains(module)) {
    const auto& differences = fingerprint.at("layers").at(module);
    if (differences.is_null()) {
      return std::nullopt;
    }
    spec.update(differences);
  }
  return settings_of(spec);
}

}  // namespace gptqd::pipeline
