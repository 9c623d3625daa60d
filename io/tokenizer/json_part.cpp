#include "io/tokenizer/json_part.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "io/json_file.hpp"
#include "io/tokenizer/oniguruma.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

using nlohmann::json;

void fail(std::string_view where, const std::string& what) {
  throw Error(ErrorKind::input, fmt::format("{}: {}", where, what));
}

void fail_unsupported(std::string_view where, const std::string& what, std::string_view supported) {
  fail(where, fmt::format("{} is not supported yet; supported: {}. Tokenize elsewhere and give a token file "
                          "(safetensors with input_ids) as the calibration data",
                          what, supported));
}

void check_members(const json& object, std::initializer_list<std::string_view> known, std::string_view part,
                   std::string_view where) {
  if (!object.is_object()) {
    fail(where, fmt::format("{} is {}, expected an object", part, object.type_name()));
  }
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      fail_unsupported(where, fmt::format("{} has a setting \"{}\", which", part, key),
                       fmt::to_string(fmt::join(known, ", ")));
    }
  }
}

const json& member_or_null(const json& object, const char* key) {
  static const json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string type_of(const json& part, std::string_view name, std::string_view where) {
  return part.is_null() ? "null" : get<std::string>(part, "type", fmt::format("{}: {}", where, name));
}

char32_t get_character(const json& object, const char* key, const std::string& where) {
  const auto text = get<std::string>(object, key, where);
  if (text.empty() || utf8_step(text, 0).length != text.size()) {
    fail(where, fmt::format("\"{}\" is \"{}\", expected one character", key, text));
  }
  return code_point_at(text, 0);
}

Regex get_pattern(const json& object, const std::string& where) {
  const auto pattern = get<json>(object, "pattern", where);
  if (!pattern.is_object() || pattern.size() != 1 || (!pattern.contains("String") && !pattern.contains("Regex"))) {
    fail(where, "\"pattern\" is neither one String nor one Regex");
  }
  const auto place = fmt::format("{}.pattern", where);
  if (pattern.contains("Regex")) {
    const auto text = get<std::string>(pattern, "Regex", place);
    return with_context(fmt::format("reading {}", place), [&] { return Regex(pcre2_from_oniguruma(text), text); });
  }
  const auto text = get<std::string>(pattern, "String", place);
  if (text.empty()) {
    fail(place, "the string is empty");
  }
  return Regex(literal_pattern(text), text);
}

}  // namespace gptqd::io
