#include "io/tokenizer/template.hpp"

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;
using HasToken = std::function<bool(std::int32_t id)>;

Template read_single(const json& processor, const HasToken& has_token, std::string_view where) {
  const auto part = fmt::format("{}: post_processor", where);
  check_members(processor, {"type", "single", "pair", "special_tokens"}, "post_processor", where);
  const auto special_tokens = get<json>(processor, "special_tokens", part);
  Template result;
  int texts = 0;
  for (const auto& piece : get<std::vector<json>>(processor, "single", part)) {
    check_members(piece, {"Sequence", "SpecialToken"}, "a piece of post_processor.single", where);
    if (piece.contains("Sequence") == piece.contains("SpecialToken")) {
      fail(part, "a piece of \"single\" is neither one Sequence nor one SpecialToken");
    }
    const auto name = fmt::format("{}.single", part);
    if (piece.contains("Sequence")) {
      if (const auto id = get<std::string>(piece["Sequence"], "id", name); id != "A") {
        fail(name, fmt::format("a single text is the sequence A, got {}", id));
      }
      ++texts;
      continue;
    }
    const auto token = get<std::string>(piece["SpecialToken"], "id", name);
    for (const auto id : get<std::vector<std::int32_t>>(get<json>(special_tokens, token, part), "ids",
                                                        fmt::format("{}.special_tokens: \"{}\"", part, token))) {
      if (!has_token(id)) {
        fail(part, fmt::format("the special token \"{}\" has the id {}, which no token has", token, id));
      }
      (texts == 0 ? result.before : result.after).push_back(id);
    }
  }
  if (texts != 1) {
    fail(part, fmt::format("\"single\" has the text {} times, expected once", texts));
  }
  return result;
}

/// Reads a post-processor; a template in it goes to `found`.
void read_step(const json& part, const HasToken& has_token, std::string_view where, std::optional<Template>& found) {
  const auto type = type_of(part, "post_processor", where);
  if (type == "ByteLevel") {  // moves offsets, which nobody asks for here
    check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "post_processor", where);
  } else if (type == "TemplateProcessing") {
    if (found) {
      fail_unsupported(where, "post_processor with two templates", "one TemplateProcessing");
    }
    found = read_single(part, has_token, where);
  } else if (type == "Sequence") {
    check_members(part, {"type", "processors"}, "post_processor", where);
    for (const auto& step : get<std::vector<json>>(part, "processors", fmt::format("{}: post_processor", where))) {
      read_step(step, has_token, where, found);
    }
  } else if (type != "null") {
    fail_unsupported(where, fmt::format("post_processor of type {}", type),
                     "null, ByteLevel, TemplateProcessing, Sequence");
  }
}

}  // namespace

Template read_template(const json& part, const HasToken& has_token, std::string_view where) {
  std::optional<Template> found;
  read_step(part, has_token, where, found);
  return std::move(found).value_or(Template{});
}

}  // namespace gptqd::io
