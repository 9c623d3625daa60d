#pragma once
/// @file Layers whose settings differ from the rest, as regular expressions that engines match module names with.
#include <optional>
#include <string>
#include <vector>

#include "io/artifact/content.hpp"

namespace gptqd::io {

/// Modules with the same settings.
struct LayerPattern {
  std::string regex;                      ///< to be matched from the beginning of a name to its end
  std::optional<LayerSettings> settings;  ///< nullopt: linears of a block that stay float
};

/// What differs from content.settings, dynamic act-order aside, which formats say for all layers at once.
///
/// No two patterns match one name, so that their order does not matter. Where all linears that share an input are
/// alike, a pattern matches the name of the tensor as well that engines make of them (qkv_proj, gate_up_proj): vLLM
/// asks by it.
std::vector<LayerPattern> layer_patterns(const ArtifactContent& content);

}  // namespace gptqd::io
