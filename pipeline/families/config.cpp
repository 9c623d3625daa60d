#include "pipeline/families/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace gptqd::pipeline {

namespace {

/// Settings of known architectures that change what a model computes and that no family here implements.
constexpr std::array unsupported_settings{"attn_logit_softcapping",
                                          "final_logit_softcapping",
                                          "logit_soft_capping",
                                          "logits_soft_cap",
                                          "query_pre_attn_scalar",
                                          "embedding_multiplier",
                                          "residual_multiplier",
                                          "attention_multiplier",
                                          "logits_scaling",
                                          "logit_scale",
                                          "num_experts",
                                          "num_local_experts",
                                          "n_routed_experts",
                                          "moe_intermediate_size",
                                          "kv_lora_rank",
                                          "no_rope_layers",
                                          "attention_sinks",
                                          "alibi"};

/// null, false, 0 and 1 (a multiplier of one) leave a model as it is.
bool is_neutral(const nlohmann::json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_number() && (value.get<double>() == 0.0 || value.get<double>() == 1.0));
}

double positive_number(const nlohmann::json& parameters, std::string_view key, std::string_view where) {
  const auto value = io::get<double>(parameters, key, where);
  if (!(value > 0.0) || !std::isfinite(value)) {
    throw Error(ErrorKind::input, fmt::format("{}: \"{}\" is {}, expected a positive number", where, key, value));
  }
  return value;
}

double positive_number_or(const nlohmann::json& parameters, std::string_view key, double fallback,
                          std::string_view where) {
  return parameters.contains(key) && !parameters.at(std::string(key)).is_null()
             ? positive_number(parameters, key, where)
             : fallback;
}

std::int64_t positive_size(const nlohmann::json& parameters, std::string_view key, std::string_view where) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  const auto value = io::get<std::int64_t>(parameters, key, where);
  if (value <= 0 || value > most) {
    throw Error(ErrorKind::input,
                fmt::format("{}: \"{}\" is {}, expected a number from 1 to {}", where, key, value, most));
  }
  return value;
}

/// The settings of rope as one object, from either place, and which of the two it was.
struct RopeSettings {
  nlohmann::json values = nlohmann::json::object();
  std::string where;
};

RopeSettings rope_settings(const FamilyConfig& config) {
  RopeSettings settings;
  if (config.has("rope_parameters")) {
    settings.where = "config.json: rope_parameters";
    settings.values = config.get<nlohmann::json>("rope_parameters");
  } else {
    settings.where = "config.json: rope_scaling";
    if (config.has("rope_scaling")) {
      settings.values = config.get<nlohmann::json>("rope_scaling");
    }
  }
  if (!settings.values.is_object()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: expected an object, got {}", settings.where, settings.values.type_name()));
  }
  for (const char* key : {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}) {
    if (!settings.values.contains(key) && config.has(key)) {
      settings.values[key] = config.get<nlohmann::json>(key);
    }
  }
  return settings;
}

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

std::vector<double> longrope_factors(const RopeSettings& settings, std::string_view key, std::int64_t width) {
  const auto factors = io::get<std::vector<double>>(settings.values, key, settings.where);
  if (std::ssize(factors) != width / 2 ||
      !std::all_of(factors.begin(), factors.end(), [](double f) { return f > 0.0; })) {
    throw Error(ErrorKind::input, fmt::format("{}: \"{}\" has {} numbers, expected {} positive ones", settings.where,
                                              key, factors.size(), width / 2));
  }
  return factors;
}

}  // namespace

FamilyConfig::FamilyConfig(std::string family, const nlohmann::json& config)
    : family_(std::move(family)), json_(config) {
  for (const auto* setting : unsupported_settings) {
    if (json_.contains(setting)) {
      require(is_neutral(json_.at(setting)), fmt::format("{} {}", setting, json_.at(setting).dump()),
              "a model without it");
    }
  }
}

std::string_view FamilyConfig::present(std::initializer_list<std::string_view> keys) const {
  const auto* found = std::find_if(keys.begin(), keys.end(), [&](std::string_view key) { return has(key); });
  return found == keys.end() ? *keys.begin() : *found;
}

std::int64_t FamilyConfig::size(std::initializer_list<std::string_view> keys) const {
  return positive_size(json_, present(keys), where);
}

std::int64_t FamilyConfig::size_or(std::string_view key, std::int64_t fallback) const {
  return has(key) ? size(key) : fallback;
}

std::int64_t FamilyConfig::layers(std::initializer_list<std::string_view> keys) const {
  const auto count = size(keys);
  require(count <= 10'000, fmt::format("{} {}", present(keys), count), "at most 10,000");
  return count;
}

float FamilyConfig::epsilon(std::string_view key, double fallback) const {
  const auto value = get_or<double>(key, fallback);
  require(value > 0.0 && value < 1.0, fmt::format("{} {}", key, value), "a small positive number");
  return static_cast<float>(value);
}

void FamilyConfig::require(bool supported, std::string_view setting, std::string_view expected) const {
  if (!supported) {
    throw Error(ErrorKind::input,
                fmt::format("config.json: {} with {} is not supported; expected {}", family_, setting, expected));
  }
}

Activation FamilyConfig::activation(std::string_view key, std::string_view fallback,
                                    std::initializer_list<std::string_view> supported) const {
  struct Name {
    std::string_view text;
    Activation activation;
  };
  constexpr std::array names{Name{"relu", Activation::relu}, Name{"silu", Activation::silu},
                             Name{"swish", Activation::silu}, Name{"gelu_new", Activation::gelu_tanh},
                             Name{"gelu_pytorch_tanh", Activation::gelu_tanh}};
  const auto text = get_or<std::string>(key, std::string(fallback));
  require(std::find(supported.begin(), supported.end(), text) != supported.end(), fmt::format("{} \"{}\"", key, text),
          fmt::format("\"{}\"", fmt::join(supported, "\" or \"")));
  return std::find_if(names.begin(), names.end(), [&](const Name& name) { return name.text == text; })->activation;
}

RopeSpec read_rope(const FamilyConfig& config, std::int64_t head_dim, std::int64_t max_positions) {
  const auto settings = rope_settings(config);
  const auto& values = settings.values;
  const auto& where = settings.where;
  RopeSpec rope;
  rope.theta = positive_number_or(values, "rope_theta", 10000.0, where);
  config.require(rope.theta > 1.0, fmt::format("rope_theta {}", rope.theta), "a number above 1");
  const double part = positive_number_or(values, "partial_rotary_factor", 1.0, where);
  config.require(part <= 1.0, fmt::format("partial_rotary_factor {}", part), "at most 1");
  rope.width = static_cast<std::int64_t>(static_cast<double>(head_dim) * part);
  config.require(rope.width >= 2 && rope.width % 2 == 0,
                 fmt::format("head_dim {} of which {} columns rotate", head_dim, rope.width), "an even number of them");
  rope.original_positions = max_positions;

  auto type =
      io::get_or<std::string>(values, "rope_type", io::get_or<std::string>(values, "type", "default", where), where);
  if (type == "su") {
    type = "longrope";  // its first name, in Phi-3's earliest files
  }
  const auto original = [&] {
    return values.contains("original_max_position_embeddings")
               ? positive_size(values, "original_max_position_embeddings", where)
               : max_positions;
  };
  if (type == "default") {
    return rope;
  }
  if (type == "linear") {
    rope.kind = RopeSpec::Kind::linear;
    rope.factor = positive_number(values, "factor", where);
  } else if (type == "dynamic") {
    rope.kind = RopeSpec::Kind::dynamic;
    rope.factor = positive_number(values, "factor", where);
    config.require(rope.width > 2 && rope.factor >= 1.0, fmt::format("dynamic rope with factor {}", rope.factor),
                   "a factor of at least 1 and heads that rotate more than 2 columns");
  } else if (type == "llama3") {
    rope.kind = RopeSpec::Kind::llama3;
    rope.factor = positive_number(values, "factor", where);
    rope.low_frequency_factor = positive_number(values, "low_freq_factor", where);
    rope.high_frequency_factor = positive_number(values, "high_freq_factor", where);
    config.require(rope.high_frequency_factor > rope.low_frequency_factor,
                   fmt::format("high_freq_factor {} and low_freq_factor {}", rope.high_frequency_factor,
                               rope.low_frequency_factor),
                   "the first above the second");
    rope.original_positions = positive_size(values, "original_max_position_embeddings", where);
  } else if (type == "yarn") {
    rope.kind = RopeSpec::Kind::yarn;
    rope.original_positions = original();
    rope.factor = positive_number_or(
        values, "factor", static_cast<double>(max_positions) / static_cast<double>(rope.original_positions), where);
    rope.beta_fast = positive_number_or(values, "beta_fast", 32.0, where);
    rope.beta_slow = positive_number_or(values, "beta_slow", 1.0, where);
    rope.truncate = io::get_or<bool>(values, "truncate", true, where);
    const auto mscale = io::get_or<double>(values, "mscale", 0.0, where);
    const auto mscale_all = io::get_or<double>(values, "mscale_all_dim", 0.0, where);
    rope.amplitude = positive_number_or(values, "attention_factor",
                                        mscale != 0.0 && mscale_all != 0.0 ? yarn_magnitude(rope.factor, mscale) /
                                                                                 yarn_magnitude(rope.factor, mscale_all)
                                                                           : yarn_magnitude(rope.factor, 1.0),
                                        where);
  } else if (type == "longrope") {
    rope.kind = RopeSpec::Kind::longrope;
    rope.original_positions = original();
    rope.factor = positive_number_or(
        values, "factor", static_cast<double>(max_positions) / static_cast<double>(rope.original_positions), where);
    rope.short_factors = longrope_factors(settings, "short_factor", rope.width);
    rope.long_factors = longrope_factors(settings, "long_factor", rope.width);
    config.require(rope.original_positions > 1, "original_max_position_embeddings 1", "at least 2");
    rope.amplitude = positive_number_or(
        values, "attention_factor",
        rope.factor <= 1.0
            ? 1.0
            : std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(rope.original_positions))),
        where);
  } else {
    config.require(false, fmt::format("rope type \"{}\"", type), "default, linear, dynamic, llama3, yarn or longrope");
  }
  return rope;
}

std::string find_prefix(const io::CheckpointReader& tensors, std::initializer_list<std::string_view> prefixes,
                        std::string_view tensor) {
  for (const auto prefix : prefixes) {
    if (tensors.find(fmt::format("{}{}", prefix, tensor)) != nullptr) {
      return std::string(prefix);
    }
  }
  return std::string(*prefixes.begin());
}

std::string head_tensor(const FamilyConfig& config, const std::string& token_table, bool tied_by_default) {
  return config.get_or<bool>("tie_word_embeddings", tied_by_default) ? token_table : "lm_head.weight";
}

}  // namespace gptqd::pipeline
