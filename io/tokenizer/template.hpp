#pragma once
/// @file What surrounds the ids of a text: tokenizer.json's "post_processor".
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Ids that come before and after those of a text.
struct Template {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};

/// Reads TemplateProcessing (for single texts), ByteLevel and Sequence with at most one template; null gives nothing.
/// @param has_token  whether an id has a token
/// @param where      the file's name, for messages
/// @throws Error (input) naming what is wrong or not supported
Template read_template(const nlohmann::json& part, const std::function<bool(std::int32_t id)>& has_token,
                       std::string_view where);

}  // namespace gptqd::io
