#include "io/tokenizer/tokenizer_config.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

std::optional<json> read_if_there(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return std::nullopt;
  }
  auto file = read_json(path);
  if (!file.is_object()) {
    fail(path.string(), fmt::format("the file holds {}, expected an object", file.type_name()));
  }
  return file;
}

/// A token as transformers writes it: its content, or an object with its flags.
AddedToken read_token(const json& value, const std::string& where) {
  if (value.is_string()) {
    return {.content = value.get<std::string>(), .special = true};
  }
  AddedToken token{.content = get<std::string>(value, "content", where),
                   .special = get_or<bool>(value, "special", true, where),
                   .normalized = get_or<bool>(value, "normalized", false, where),
                   .single_word = get_or<bool>(value, "single_word", false, where),
                   .lstrip = get_or<bool>(value, "lstrip", false, where),
                   .rstrip = get_or<bool>(value, "rstrip", false, where)};
  return token;
}

void add(TokenizerConfig& config, NamedToken named, const std::string& where) {
  if (named.token.content.empty()) {
    fail(where, "a token is empty");
  }
  const auto known = std::find_if(config.added.begin(), config.added.end(),
                                  [&](const NamedToken& other) { return other.token.content == named.token.content; });
  if (known == config.added.end()) {
    config.added.push_back(std::move(named));
  } else if (known->has_id && named.has_id && known->token.id != named.token.id) {
    fail(where,
         fmt::format("token \"{}\" has two ids, {} and {}", named.token.content, known->token.id, named.token.id));
  } else {
    known->token.special = known->token.special || named.token.special;
  }
}

std::int32_t read_id(std::string_view text, const std::string& where) {
  std::int64_t id = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9' || id > std::numeric_limits<std::int32_t>::max() / 10) {
      fail(where, fmt::format("\"{}\" is no token id", text));
    }
    id = 10 * id + (digit - '0');
  }
  if (text.empty() || id > std::numeric_limits<std::int32_t>::max()) {
    fail(where, fmt::format("\"{}\" is no token id", text));
  }
  return static_cast<std::int32_t>(id);
}

/// bos_token and the like, which both tokenizer_config.json and special_tokens_map.json may hold.
void add_named(TokenizerConfig& config, const json& file, const std::string& where) {
  for (const auto* key : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"}) {
    const auto& value = member_or_null(file, key);
    if (value.is_null()) {
      continue;
    }
    auto token = read_token(value, fmt::format("{}: \"{}\"", where, key));
    token.special = true;
    const std::string_view name = key;
    auto* const said = name == "bos_token"   ? &config.bos_token
                       : name == "eos_token" ? &config.eos_token
                       : name == "unk_token" ? &config.unk_token
                                             : nullptr;
    if (said != nullptr && said->empty()) {
      *said = token.content;
    }
    add(config, {.token = std::move(token), .has_id = false}, where);
  }
  for (const auto& value : get_or<std::vector<json>>(file, "additional_special_tokens", {}, where)) {
    auto token = read_token(value, fmt::format("{}: \"additional_special_tokens\"", where));
    token.special = true;
    add(config, {.token = std::move(token), .has_id = false}, where);
  }
}

}  // namespace

const NamedToken* TokenizerConfig::find(std::string_view content) const {
  const auto found =
      std::find_if(added.begin(), added.end(), [&](const NamedToken& named) { return named.token.content == content; });
  return found == added.end() ? nullptr : &*found;
}

void TokenizerConfig::add_special(const std::string& content) {
  add(*this, {.token = {.content = content, .special = true}, .has_id = false}, content);
}

TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder,
                                      std::initializer_list<std::string_view> classes) {
  TokenizerConfig config;
  const auto path = folder / "tokenizer_config.json";
  const auto where = path.string();
  const auto file = read_if_there(path);
  if (file) {
    config.found = true;
    config.tokenizer_class = get_or<std::string>(*file, "tokenizer_class", "", where);
    if (config.tokenizer_class.ends_with("Fast")) {
      config.tokenizer_class.resize(config.tokenizer_class.size() - 4);
    }
    if (!config.tokenizer_class.empty() &&
        std::find(classes.begin(), classes.end(), config.tokenizer_class) == classes.end()) {
      fail_unsupported(where, fmt::format("tokenizer_class {} without a tokenizer.json", config.tokenizer_class),
                       fmt::to_string(fmt::join(classes, ", ")));
    }
    const auto flag = [&](const char* key) -> std::optional<bool> {
      return member_or_null(*file, key).is_null() ? std::nullopt : std::optional(get<bool>(*file, key, where));
    };
    config.add_bos_token = flag("add_bos_token");
    config.add_eos_token = flag("add_eos_token");
    config.add_prefix_space = flag("add_prefix_space");
    config.legacy = flag("legacy");
    const auto decoder = get_or<json>(*file, "added_tokens_decoder", json::object(), where);
    for (const auto& [id, value] : decoder.items()) {
      auto token = read_token(value, fmt::format("{}: added_tokens_decoder: \"{}\"", where, id));
      token.special = value.is_object() && get_or<bool>(value, "special", false, where);
      token.id = read_id(id, where);
      add(config, {.token = std::move(token), .has_id = true}, where);
    }
  }
  const auto more_path = folder / "added_tokens.json";
  if (const auto more = read_if_there(more_path)) {
    config.found = true;
    for (const auto& [content, id] : more->items()) {
      add(config,
          {.token = {.content = content,
                     .id = get<std::int32_t>(*more, content, more_path.string()),
                     .normalized = true},
           .has_id = true},
          more_path.string());
    }
  }
  std::stable_sort(config.added.begin(), config.added.end(),
                   [](const NamedToken& a, const NamedToken& b) { return a.token.id < b.token.id; });
  if (file) {
    add_named(config, *file, where);
  }
  const auto map_path = folder / "special_tokens_map.json";
  if (const auto map = read_if_there(map_path)) {
    config.found = true;
    add_named(config, *map, map_path.string());
  }
  return config;
}

}  // namespace gptqd::io
