#pragma once
/// @file What the families share in reading a config.json: aliases of keys, sizes, and refusals by name.
#include <fmt/format.h>

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/checkpoint_reader.hpp"
#include "io/json_file.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// A model's config.json under the name of its family.
///
/// On construction it refuses what no family implements, whatever the family: soft-capped logits, multipliers of
/// Granite and others, experts, weights that are quantized already.
class FamilyConfig {
 public:
  /// @throws Error (input) naming a setting that changes results and is not implemented
  FamilyConfig(std::string family, const nlohmann::json& config);

  /// The value of the first of `keys` that is there and not null.
  template <class T>
  T get(std::initializer_list<std::string_view> keys) const {
    return io::get<T>(json_, present(keys), where);
  }
  template <class T>
  T get(std::string_view key) const {
    return io::get<T>(json_, key, where);
  }
  template <class T>
  T get_or(std::string_view key, std::type_identity_t<T> fallback) const {
    return io::get_or<T>(json_, key, fallback, where);
  }
  bool has(std::string_view key) const { return json_.contains(key) && !json_.at(std::string(key)).is_null(); }

  /// A size of the model: positive, at most 2^31. @throws Error (input)
  std::int64_t size(std::initializer_list<std::string_view> keys) const;
  std::int64_t size(std::string_view key) const { return size({key}); }
  std::int64_t size_or(std::string_view key, std::int64_t fallback) const;
  /// num_hidden_layers under one of its names: at most 10,000.
  std::int64_t layers(std::initializer_list<std::string_view> keys) const;
  /// epsilon of norms: positive.
  float epsilon(std::string_view key, double fallback) const;

  /// @throws Error (input) "FAMILY with SETTING is not supported; expected EXPECTED" unless `supported`
  void require(bool supported, std::string_view setting, std::string_view expected) const;
  /// The activation under `key`. @throws Error (input) unless it is one of `supported` (names as transformers has them)
  Activation activation(std::string_view key, std::string_view fallback,
                        std::initializer_list<std::string_view> supported) const;
  const nlohmann::json& json() const { return json_; }

  static constexpr std::string_view where = "config.json";

 private:
  std::string_view present(std::initializer_list<std::string_view> keys) const;

  std::string family_;
  const nlohmann::json& json_;
};

/// rope_parameters (transformers 5), or rope_theta and rope_scaling (before).
/// @param original_positions  max_position_embeddings
/// @throws Error (input) for a rope type, or a parameter of one, that is not implemented
RopeSpec read_rope(const FamilyConfig& config, std::int64_t head_dim, std::int64_t max_positions);

/// The first of `prefixes` under which the files have `tensor`; the first one where none fits, for the check of tensors
/// to name what is missing.
std::string find_prefix(const io::CheckpointReader& tensors, std::initializer_list<std::string_view> prefixes,
                        std::string_view tensor);

/// Name of the head's tensor: the token table where config.json ties them.
std::string head_tensor(const FamilyConfig& config, const std::string& token_table, bool tied_by_default);

}  // namespace gptqd::pipeline
