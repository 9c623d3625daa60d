#pragma once
/// @file What a GPTQ checkpoint's quantization_config says of single modules ("dynamic").
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/artifact/content.hpp"
#include "io/tokenizer/regex.hpp"

namespace gptqd::io {

/// "dynamic": {"+:REGEX": {"bits": 8, ...}, "-:REGEX": {}}. The first REGEX that matches from the beginning of a
/// module's name decides, as in GPTQModel and vLLM; "-:" leaves the module unquantized, a key without either sign
/// counts as "+:".
class GptqDynamic {
 public:
  /// Nothing differs.
  GptqDynamic() = default;
  /// @param dynamic  the object, in the file's order; null: nothing differs
  /// @param where    opens messages
  /// @throws Error (input) for what is no such object, and for a regex that PCRE2 refuses
  GptqDynamic(const nlohmann::ordered_json& dynamic, const std::string& where);

  /// The module's settings; nullopt where it is left unquantized.
  /// @throws Error (input) when PCRE2 gives up
  std::optional<LayerSettings> apply(const LayerSettings& base, const std::string& module) const;
  bool empty() const { return rules_.empty(); }

 private:
  struct Rule {
    Regex pattern;
    bool quantized = true;
    std::optional<int> bits;
    std::optional<std::int64_t> group_size;
    std::optional<bool> sym;
    std::optional<bool> reordered;
  };
  std::vector<Rule> rules_;
};

}  // namespace gptqd::io
