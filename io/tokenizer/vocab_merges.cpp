#include "io/tokenizer/vocab_merges.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/tokenizer_config.hpp"
#include "io/tokenizer/tokenizer_json.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

/// The lines of merges.txt, without the version in the first and the empty one at the end.
json read_merges(const std::filesystem::path& path) {
  const auto bytes = read_file(path, default_max_json_bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!is_valid_utf8(text)) {
    fail(path.string(), "not valid UTF-8");
  }
  auto merges = json::array();
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    auto line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    if (!line.starts_with("#version")) {
      merges.push_back(std::string(line));
    }
    begin = end + 1;
  }
  return merges;
}

bool is_opt(const std::filesystem::path& folder) {
  std::error_code ignored;
  const auto path = folder / "config.json";
  return std::filesystem::exists(path, ignored) &&
         get_or<std::string>(read_json(path), "model_type", "", path.string()) == "opt";
}

json added_token(const AddedToken& token, std::int64_t id) {
  return {{"id", id},
          {"content", token.content},
          {"single_word", token.single_word},
          {"lstrip", token.lstrip},
          {"rstrip", token.rstrip},
          {"normalized", token.normalized},
          {"special", token.special}};
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_vocab_merges(const std::filesystem::path& folder) {
  constexpr const char* usual_token = "<|endoftext|>";
  const auto vocab_path = (folder / "vocab.json").string();
  auto vocab = read_json(vocab_path);
  if (!vocab.is_object()) {
    fail(vocab_path, fmt::format("the file holds {}, expected an object", vocab.type_name()));
  }
  auto config = read_tokenizer_config(folder, {"GPT2Tokenizer"});
  if (!config.found) {
    fail(folder.string(),
         "vocab.json and merges.txt are there, but neither tokenizer_config.json nor special_tokens_map.json, which "
         "name the special tokens; copy them from the model's repository");
  }
  for (auto* token : {&config.bos_token, &config.eos_token, &config.unk_token}) {
    if (token->empty() && vocab.contains(usual_token)) {
      *token = usual_token;
      config.add_special(usual_token);
    }
  }

  // Known ids come first, so that the others follow the last one.
  auto added = json::array();
  std::int64_t next = static_cast<std::int64_t>(vocab.size());
  std::stable_sort(config.added.begin(), config.added.end(), [&](const NamedToken& a, const NamedToken& b) {
    return vocab.contains(a.token.content) && !vocab.contains(b.token.content);
  });
  auto special_tokens = json::object();
  for (const auto& [token, has_id] : config.added) {
    std::int64_t id = token.id;
    if (vocab.contains(token.content)) {
      id = get<std::int32_t>(vocab, token.content, vocab_path);
      if (has_id && id != token.id) {
        fail(folder.string(),
             fmt::format("token \"{}\" has the id {} beside vocab.json and {} in it", token.content, token.id, id));
      }
    } else if (!has_id) {
      id = next;
    }
    next = std::max(next, id + 1);
    added.push_back(added_token(token, id));
    special_tokens[token.content] = {{"id", token.content}, {"ids", {id}}, {"tokens", {token.content}}};
  }

  auto single = json::array();
  const auto add_to_template = [&](const std::string& token, const char* flag) {
    if (token.empty()) {
      fail(folder.string(), fmt::format("{} is set, but no file names the token", flag));
    }
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
  };
  if (config.add_bos_token ? *config.add_bos_token : is_opt(folder)) {
    add_to_template(config.bos_token, "add_bos_token");
  }
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (config.add_eos_token.value_or(false)) {
    add_to_template(config.eos_token, "add_eos_token");
  }

  json file{{"added_tokens", std::move(added)},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", config.add_prefix_space.value_or(false)}}},
            {"post_processor",
             {{"type", "TemplateProcessing"}, {"single", std::move(single)}, {"special_tokens", special_tokens}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model", {{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", read_merges(folder / "merges.txt")}}}};
  return tokenizer_from_json(file, fmt::format("{}, merges.txt", vocab_path));
}

}  // namespace gptqd::io
