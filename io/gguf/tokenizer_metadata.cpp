#include "io/gguf/tokenizer_metadata.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "io/json_file.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// llama.cpp's kinds of tokens.
enum class TokenKind : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

constexpr std::int64_t most_tokens = 10'000'000;
constexpr float score_of_added = -1000.0f;

[[noreturn]] void refuse(const std::string& where, const std::string& offence) {
  throw Error(ErrorKind::input, fmt::format("{}: {}", where, offence));
}

/// Tokens by id.
class Vocabulary {
 public:
  explicit Vocabulary(std::string where) : where_(std::move(where)) {}

  void set(std::int64_t id, const std::string& token, TokenKind kind, float score) {
    if (id < 0 || id >= most_tokens) {
      refuse(where_, fmt::format("token \"{}\" has the id {}", token, id));
    }
    const auto place = static_cast<std::size_t>(id);
    if (place >= tokens_.size()) {
      resize(id + 1);
    }
    tokens_[place] = token;
    kinds_[place] = static_cast<std::int32_t>(kind);
    scores_[place] = score;
  }

  /// As many as the model's embedding has rows.
  void pad(std::int64_t vocabulary) {
    if (std::ssize(tokens_) > vocabulary) {
      throw Error(ErrorKind::usage, fmt::format("{}: {} tokens, the model's embedding has {}: llama.cpp wants as many",
                                                where_, tokens_.size(), vocabulary));
    }
    resize(vocabulary);
  }

  std::optional<std::uint32_t> find(std::string_view token) const {
    const auto found = std::find(tokens_.begin(), tokens_.end(), token);
    return found == tokens_.end() ? std::nullopt : std::optional(static_cast<std::uint32_t>(found - tokens_.begin()));
  }

  void add_to(GgufMetadata& metadata, bool with_scores) const {
    metadata.emplace_back("tokenizer.ggml.tokens", tokens_);
    if (with_scores) {
      metadata.emplace_back("tokenizer.ggml.scores", scores_);
    }
    metadata.emplace_back("tokenizer.ggml.token_type", kinds_);
  }

 private:
  void resize(std::int64_t size) {
    for (auto id = std::ssize(tokens_); id < size; ++id) {
      tokens_.push_back(fmt::format("[PAD{}]", id));
      kinds_.push_back(static_cast<std::int32_t>(TokenKind::unused));
      scores_.push_back(-10000.0f);
    }
  }

  std::string where_;
  std::vector<std::string> tokens_;
  std::vector<std::int32_t> kinds_;
  std::vector<float> scores_;
};

/// A file of the folder, or an empty object where it is not there.
json optional_json(const fs::path& path) {
  std::error_code ignored;
  auto content = fs::exists(path, ignored) ? read_json(path) : json::object();
  if (!content.is_object()) {
    refuse(path.string(), "expected an object");
  }
  return content;
}

/// Parts of a Sequence under `list`, or the one part itself; nothing for null.
std::vector<json> parts_of(const json& part, const char* list) {
  if (part.is_null()) {
    return {};
  }
  if (part.is_object() && part.value("type", "") == "Sequence" && part.contains(list) && part.at(list).is_array()) {
    return part.at(list).get<std::vector<json>>();
  }
  return {part};
}

std::string text_of(const json& object, const char* key) {
  return object.is_object() && object.contains(key) && object.at(key).is_string() ? object.at(key).get<std::string>()
                                                                                  : std::string();
}

bool flag_of(const json& object, const char* key) {
  return object.is_object() && object.contains(key) && object.at(key).is_boolean() && object.at(key).get<bool>();
}

/// llama.cpp's name of a byte-level tokenizer's way of cutting texts into words.
std::string pre_tokenizer_name(const json& tokenizer, const std::string& where) {
  struct Known {
    std::string_view pattern;
    std::string_view name;
  };
  static constexpr std::array patterns{
      Known{
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
          "llama-bpe"},
      Known{
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
          "qwen2"},
      Known{R"( ?[^(\s|[.,!?…。，、।۔،])]+)", "bloom"}};
  std::string steps;
  std::string pattern;
  for (const auto& part : parts_of(tokenizer.value("pre_tokenizer", json()), "pretokenizers")) {
    const auto type = text_of(part, "type");
    const bool has_regex = type == "ByteLevel" && flag_of(part, "use_regex");
    steps += (steps.empty() ? "" : ", ") + type + (has_regex ? " with its regex" : "");
    if (type == "Split") {
      pattern = text_of(part.value("pattern", json()), "Regex");
    }
    if (flag_of(part, "add_prefix_space")) {
      refuse(where, "a blank in front of texts (add_prefix_space) is nothing that llama.cpp does for byte-level BPE");
    }
  }
  if (steps == "ByteLevel with its regex") {
    return "gpt-2";
  }
  if (steps == "Digits, ByteLevel with its regex") {
    return "smollm";
  }
  if (steps == "Split, ByteLevel") {
    const auto* known =
        std::find_if(patterns.begin(), patterns.end(), [&](const Known& entry) { return entry.pattern == pattern; });
    if (known != patterns.end()) {
      return std::string(known->name);
    }
  }
  refuse(where, fmt::format("llama.cpp has no name that we know for the pre-tokenizer ({}{}{})", steps,
                            pattern.empty() ? "" : ": ", pattern));
}

/// The merges as "left right"; a blank inside a token is written as byte-level BPE writes it.
std::vector<std::string> merges_of(const json& model, const std::string& where) {
  std::vector<std::string> merges;
  for (const auto& merge : get<json>(model, "merges", where)) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
      continue;
    }
    if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
      refuse(where, fmt::format("merge {} is no pair of tokens", merges.size()));
    }
    std::string text;
    for (const auto& part : merge) {
      text += text.empty() ? "" : " ";
      for (const char letter : part.get<std::string>()) {
        text += letter == ' ' ? std::string("Ġ") : std::string(1, letter);
      }
    }
    merges.push_back(std::move(text));
  }
  return merges;
}

void add_added_tokens(const json& tokenizer, Vocabulary& vocabulary, const std::string& where) {
  for (const auto& added : get_or<json>(tokenizer, "added_tokens", json::array(), where)) {
    const auto content = get<std::string>(added, "content", where);
    const bool looks_special = content.starts_with("<|") && content.ends_with("|>");
    vocabulary.set(
        get<std::int64_t>(added, "id", where), content,
        get_or<bool>(added, "special", false, where) || looks_special ? TokenKind::control : TokenKind::user_defined,
        score_of_added);
  }
}

/// "<0x1F>"
bool is_byte_token(std::string_view token) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return token.size() == 6 && token.starts_with("<0x") && token.ends_with(">") &&
         digits.find(token[3]) != std::string_view::npos && digits.find(token[4]) != std::string_view::npos;
}

/// The tokens of the model with their ids.
std::vector<std::pair<std::string, std::int64_t>> tokens_of(const json& model, const std::string& where) {
  const auto vocab = get<json>(model, "vocab", where);
  std::vector<std::pair<std::string, std::int64_t>> tokens;
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_integer()) {
      refuse(where, fmt::format("the id of token \"{}\" is no integer", token));
    }
    tokens.emplace_back(token, id.get<std::int64_t>());
  }
  return tokens;
}

void add_byte_level(const json& tokenizer, Vocabulary& vocabulary, const std::string& where) {
  for (const auto& [token, id] : tokens_of(get<json>(tokenizer, "model", where), where)) {
    vocabulary.set(id, token, TokenKind::normal, 0);
  }
  add_added_tokens(tokenizer, vocabulary, where);
}

/// SentencePiece merges the pair whose result has the highest score, BPE the pair of the lowest rank.
void add_byte_fallback(const json& tokenizer, Vocabulary& vocabulary, const std::string& where) {
  const auto model = get<json>(tokenizer, "model", where);
  std::unordered_map<std::string, float> score_of;
  float rank = 0;
  for (const auto& merge : merges_of(model, where)) {
    const auto blank = merge.find(' ');
    score_of.try_emplace(merge.substr(0, blank) + merge.substr(blank + 1), -rank);
    ++rank;
  }
  const auto unknown = text_of(model, "unk_token");
  for (const auto& [token, id] : tokens_of(model, where)) {
    const auto score = score_of.find(token);
    vocabulary.set(id, token, is_byte_token(token) ? TokenKind::byte : TokenKind::normal,
                   score == score_of.end() ? -rank : score->second);
  }
  add_added_tokens(tokenizer, vocabulary, where);
  if (const auto id = vocabulary.find(unknown); id && !unknown.empty()) {
    vocabulary.set(*id, unknown, TokenKind::unknown, 0);
  }
}

/// Whether a blank stands in front of every text.
bool has_dummy_prefix(const json& tokenizer) {
  for (const auto& part : parts_of(tokenizer.value("normalizer", json()), "normalizers")) {
    if (text_of(part, "type") == "Prepend") {
      return true;
    }
  }
  for (const auto& part : parts_of(tokenizer.value("pre_tokenizer", json()), "pretokenizers")) {
    if (text_of(part, "type") == "Metaspace") {
      const auto scheme = text_of(part, "prepend_scheme");
      return scheme.empty() ? !part.contains("add_prefix_space") || flag_of(part, "add_prefix_space")
                            : scheme != "never";
    }
  }
  return false;
}

void add_sentencepiece(const fs::path& path, Vocabulary& vocabulary) {
  sentencepiece::SentencePieceProcessor processor;
  if (const auto status = processor.Load(path.string()); !status.ok()) {
    refuse(path.string(), fmt::format("the sentencepiece library refuses the model: {}", status.ToString()));
  }
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const auto kind = processor.IsUnknown(id)   ? TokenKind::unknown
                      : processor.IsControl(id) ? TokenKind::control
                      : processor.IsUnused(id)  ? TokenKind::unused
                      : processor.IsByte(id)    ? TokenKind::byte
                                                : TokenKind::normal;
    vocabulary.set(id, processor.IdToPiece(id), kind, processor.GetScore(id));
  }
}

/// The content of a token that tokenizer_config.json names, as text or as an object.
std::string special_token(const json& config, const std::string& key) {
  const auto found = config.value(key, json());
  return found.is_object() ? text_of(found, "content") : found.is_string() ? found.get<std::string>() : std::string();
}

/// Whether a template of the post-processor begins (ends) with a special token.
std::pair<bool, bool> template_ends(const json& tokenizer) {
  for (const auto& part : parts_of(tokenizer.value("post_processor", json()), "processors")) {
    if (text_of(part, "type") == "TemplateProcessing" && part.contains("single") && part.at("single").is_array() &&
        !part.at("single").empty()) {
      const auto is_special = [](const json& piece) { return piece.is_object() && piece.contains("SpecialToken"); };
      return {is_special(part.at("single").front()), is_special(part.at("single").back())};
    }
  }
  return {false, false};
}

void add_special_tokens(GgufMetadata& metadata, const Vocabulary& vocabulary, const json& tokenizer,
                        const json& tokenizer_config, const json& config, bool sentencepiece) {
  for (const auto& [type, key] :
       {std::pair("bos", "bos"), std::pair("eos", "eos"), std::pair("unk", "unknown"), std::pair("pad", "padding")}) {
    auto id = vocabulary.find(special_token(tokenizer_config, fmt::format("{}_token", type)));
    const auto in_config = config.value(fmt::format("{}_token_id", type), json());
    if (!id && in_config.is_number_unsigned() && in_config.get<std::uint64_t>() < most_tokens) {
      id = in_config.get<std::uint32_t>();
    }
    if (id) {
      metadata.emplace_back(fmt::format("tokenizer.ggml.{}_token_id", key), *id);
    }
  }
  auto [bos, eos] = template_ends(tokenizer);
  bos = bos || (sentencepiece && tokenizer.empty());  // tokenizer.model alone: unless the configuration says otherwise
  for (const auto& [key, otherwise] : {std::pair("add_bos_token", bos), std::pair("add_eos_token", eos)}) {
    const bool from_config = tokenizer_config.contains(key) && tokenizer_config.at(key).is_boolean();
    // A template says more than the flag, which fast tokenizers ignore.
    const bool value = from_config && tokenizer.empty() ? tokenizer_config.at(key).get<bool>() : otherwise;
    metadata.emplace_back(fmt::format("tokenizer.ggml.{}", key), value);
  }
}

}  // namespace

GgufMetadata tokenizer_metadata(const fs::path& folder, const json& config, std::int64_t vocabulary_size) {
  std::error_code ignored;
  const fs::path model_path = folder / "tokenizer.model";
  const fs::path json_path = folder / "tokenizer.json";
  const bool has_model = fs::exists(model_path, ignored);
  if (!has_model && !fs::exists(json_path, ignored)) {
    refuse(folder.string(),
           "GGUF holds the tokenizer, but neither tokenizer.model nor tokenizer.json is there; save it "
           "as tokenizer.json with transformers, or choose another format");
  }
  const auto tokenizer = optional_json(json_path);
  const auto tokenizer_config = optional_json(folder / "tokenizer_config.json");
  const std::string where = (has_model ? model_path : json_path).string();
  const auto model = tokenizer.value("model", json::object());
  const bool fallback = flag_of(model, "byte_fallback");
  const bool sentencepiece = has_model || fallback;

  Vocabulary vocabulary(where);
  GgufMetadata metadata{{"tokenizer.ggml.model", std::string(sentencepiece ? "llama" : "gpt2")}};
  if (has_model) {
    add_sentencepiece(model_path, vocabulary);
    add_added_tokens(tokenizer, vocabulary, json_path.string());
  } else if (text_of(model, "type") != "BPE") {
    refuse(where, fmt::format("a model of type \"{}\"; GGUF files are written for BPE", text_of(model, "type")));
  } else if (fallback) {
    add_byte_fallback(tokenizer, vocabulary, where);
  } else {
    add_byte_level(tokenizer, vocabulary, where);
  }
  vocabulary.pad(vocabulary_size);
  metadata.emplace_back("tokenizer.ggml.pre",
                        sentencepiece ? std::string("default") : pre_tokenizer_name(tokenizer, where));
  vocabulary.add_to(metadata, sentencepiece);
  if (!sentencepiece) {
    metadata.emplace_back("tokenizer.ggml.merges", merges_of(model, where));
  } else if (!tokenizer.empty()) {
    metadata.emplace_back("tokenizer.ggml.add_space_prefix", has_dummy_prefix(tokenizer));
  }
  add_special_tokens(metadata, vocabulary, tokenizer, tokenizer_config, config, sentencepiece);

  const fs::path template_path = folder / "chat_template.jinja";
  if (fs::exists(template_path, ignored)) {
    const auto bytes = read_file(template_path, default_max_json_bytes);
    metadata.emplace_back("tokenizer.chat_template",
                          std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  } else if (const auto text = text_of(tokenizer_config, "chat_template"); !text.empty()) {
    metadata.emplace_back("tokenizer.chat_template", text);
  }
  return metadata;
}

}  // namespace gptqd::io
