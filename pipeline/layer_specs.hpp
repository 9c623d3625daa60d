#pragma once
/// @file Which linear is quantized how: the run's settings, changed for some linears by what the user asked.
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "gptq/quant_spec.hpp"
#include "io/artifact/content.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// One wish for some linears. What it does not name stays as the run has it.
struct LayerRule {
  std::string option;             ///< as given, for messages
  std::string pattern;            ///< PCRE2, searched for anywhere in a linear's name; empty: any name
  std::int64_t first_blocks = 0;  ///< of this many blocks at the beginning ...
  std::int64_t last_blocks = 0;   ///< ... and at the end; both 0: of all blocks
  bool skip = false;              ///< the linears stay as they are
  std::optional<int> bits = std::nullopt;
  std::optional<std::int64_t> group_size = std::nullopt;
  std::optional<bool> symmetric = std::nullopt;
};

/// "regex=bits:8,group:64,sym:false", any of the three, split at the last "=". @throws Error (usage)
LayerRule parse_override(const std::string& text);
/// A regex. @throws Error (usage)
LayerRule parse_skip(const std::string& text);
/// "N=bits:8,group:64" or "N=skip", for the N first or the N last blocks. @throws Error (usage)
LayerRule parse_first_blocks(const std::string& text);
LayerRule parse_last_blocks(const std::string& text);

/// The settings of every linear of a model's blocks.
class LayerSpecs {
 public:
  /// The same for all.
  static LayerSpecs uniform(const gptq::QuantSpec& base);
  /// Applies the rules in their order, a later one over an earlier one; a skip over everything.
  ///
  /// Engines load q, k and v as one tensor, gate and up too, and they share one Hessian here: linears of a phase must
  /// have the same settings.
  /// @param choose_clip  where a rule changes the group size, the clip becomes default_clip() of the new one
  /// @throws Error (usage) for a rule that fits no linear, a pattern that PCRE2 refuses, settings that validate()
  /// refuses
  ///         (naming the linear), linears of one phase with different settings, or nothing left to quantize
  static LayerSpecs resolve(const ModelSpec& model, const gptq::QuantSpec& base, const std::vector<LayerRule>& rules,
                            bool choose_clip);

  /// Null for a linear that stays as it is.
  const gptq::QuantSpec* find(const std::string& module) const;
  const gptq::QuantSpec& base() const { return base_; }
  /// The settings that occur, each once.
  std::vector<gptq::QuantSpec> distinct() const;
  /// What the linears have that differs from the run's settings: {"module": {"bits": 8, "group_size": 64}, ...}, null
  /// for a linear that stays as it is; an empty object without such linears. Part of the fingerprint.
  nlohmann::json to_json() const;

 private:
  gptq::QuantSpec base_;
  std::map<std::string, std::optional<gptq::QuantSpec>> others_;  ///< that differ from base_
};

/// The run's own settings, as far as an artifact's format goes.
/// @param fingerprint  with "spec", and "layers" where some linears differ
io::LayerSettings base_settings(const nlohmann::json& fingerprint);
/// A linear's; nullopt: it was not quantized.
std::optional<io::LayerSettings> layer_settings(const nlohmann::json& fingerprint, const std::string& module);

}  // namespace gptqd::pipeline
