#include "io/tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/json_file.hpp"
#include "io/tokenizer/added_tokens.hpp"
#include "io/tokenizer/bpe.hpp"
#include "io/tokenizer/byte_level.hpp"
#include "io/tokenizer/split_regex.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

[[noreturn]] void fail(std::string_view where, const std::string& what) {
  throw Error(ErrorKind::input, fmt::format("{}: {}", where, what));
}

/// `what` is a thing of the Hugging Face library that this program does not do.
[[noreturn]] void fail_unsupported(std::string_view where, const std::string& what, std::string_view supported) {
  fail(where, fmt::format("{} is not supported yet; supported: {}. Tokenize elsewhere and give a token file "
                          "(safetensors with input_ids) as the calibration data",
                          what, supported));
}

/// Refuses settings that nobody would obey.
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

/// Ids that the template puts before and after those of the text.
struct Template {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};

/// What encode() does with the text between added tokens.
struct PreTokenizer {
  bool add_prefix_space = false;
  std::optional<SplitRegex> words;  // without: the whole run is one word
};

class ByteLevelTokenizer final : public Tokenizer {
 public:
  ByteLevelTokenizer(const Vocabulary& vocabulary, const std::vector<AddedToken>& added, PreTokenizer pre_tokenizer,
                     ByteLevelBpe bpe, Template special)
      : added_(added),
        pre_tokenizer_(std::move(pre_tokenizer)),
        bpe_(std::move(bpe)),
        template_(std::move(special)),
        vocab_size_(vocabulary.id_bound()) {
    for (const auto& [id, token] : vocabulary.tokens()) {
      // A token with a character outside the alphabet stands for itself.
      token_of_id_[id] = {byte_level_bytes(*token).value_or(*token), false};
    }
    for (const auto& token : added) {
      token_of_id_.at(token.id).special = token.special;
    }
  }

  std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const override {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = replace_invalid_utf8(text);
      text = repaired;
    }
    if (text.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      throw Error(ErrorKind::input,
                  fmt::format("tokenizing a text of {} bytes: texts must be below 2 GiB; split it", text.size()));
    }
    std::vector<std::int32_t> ids;
    ByteLevelBpe::Scratch scratch;
    if (special == SpecialTokens::add) {
      ids = template_.before;
    }
    added_.split(
        text, [&](std::int32_t id) { ids.push_back(id); },
        [&](std::string_view run) { encode_run(run, scratch, ids); });
    if (special == SpecialTokens::add) {
      ids.insert(ids.end(), template_.after.begin(), template_.after.end());
    }
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override {
    std::string bytes;
    for (const auto id : ids) {
      const auto token = token_of_id_.find(id);
      if (token != token_of_id_.end() && !(skip_special && token->second.special)) {
        bytes += token->second.bytes;
      }
    }
    return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
  }

  std::int64_t vocab_size() const override { return vocab_size_; }

 private:
  struct Token {
    std::string bytes;
    bool special = false;
  };

  void encode_run(std::string_view run, ByteLevelBpe::Scratch& scratch, std::vector<std::int32_t>& ids) const {
    std::string prefixed;
    if (pre_tokenizer_.add_prefix_space && !run.starts_with(' ')) {
      prefixed.reserve(run.size() + 1);
      prefixed.append(1, ' ').append(run);
      run = prefixed;
    }
    if (pre_tokenizer_.words) {
      pre_tokenizer_.words->for_each_piece(run, [&](std::string_view word) { bpe_.encode(word, scratch, ids); });
    } else {
      bpe_.encode(run, scratch, ids);
    }
  }

  AddedTokens added_;
  PreTokenizer pre_tokenizer_;
  ByteLevelBpe bpe_;
  Template template_;
  std::unordered_map<std::int32_t, Token> token_of_id_;
  std::int64_t vocab_size_ = 0;
};

Vocabulary read_vocabulary(const json& model, std::string_view where) {
  const auto found = model.find("vocab");
  if (found == model.end() || !found->is_object()) {
    fail(where, "model has no \"vocab\" object, which a BPE model must have");
  }
  Vocabulary vocabulary;
  const auto part = fmt::format("{}: model.vocab", where);
  for (const auto& [token, id] : found->items()) {
    vocabulary.add(token, get<std::int32_t>(*found, token, part));
  }
  if (vocabulary.size() == 0) {
    fail(where, "model.vocab is empty");
  }
  return vocabulary;
}

/// Both halves of a merge, written as "a b" or as ["a", "b"].
std::pair<std::string, std::string> read_pair(const json& entry, std::int64_t index, std::string_view where) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return {entry[0].get<std::string>(), entry[1].get<std::string>()};
  }
  if (entry.is_string()) {
    const auto& text = entry.get_ref<const std::string&>();
    const auto blank = text.find(' ');
    if (blank != std::string::npos && text.find(' ', blank + 1) == std::string::npos) {
      return {text.substr(0, blank), text.substr(blank + 1)};
    }
  }
  fail(where, fmt::format("model.merges[{}] is {}, expected \"left right\" or [\"left\", \"right\"]", index,
                          entry.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 100)));
}

MergeTable read_merges(const json& model, const Vocabulary& vocabulary, std::string_view where) {
  const auto found = model.find("merges");
  if (found == model.end() || !found->is_array()) {
    fail(where, "model has no \"merges\" array, which a BPE model must have");
  }
  std::vector<Merge> merges;
  merges.reserve(found->size());
  std::int64_t index = 0;
  for (const auto& entry : *found) {
    // A first line of merges.txt that converters have carried over.
    if (!entry.is_string() || !entry.get_ref<const std::string&>().starts_with("#version")) {
      const auto [left, right] = read_pair(entry, index, where);
      const auto id_of = [&, &left = left, &right = right](const std::string& token, std::string_view role) {
        const auto id = vocabulary.find(token);
        if (!id) {
          fail(where, fmt::format("model.merges[{}] joins \"{}\" and \"{}\": the {} \"{}\" is not in model.vocab",
                                  index, left, right, role, token));
        }
        return *id;
      };
      merges.push_back({id_of(left, "left part"), id_of(right, "right part"), id_of(left + right, "result")});
    }
    ++index;
  }
  return MergeTable(merges);
}

ByteLevelBpe read_model(const json& model, const Vocabulary& vocabulary, std::string_view where) {
  const auto part = fmt::format("{}: model", where);
  check_members(model,
                {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                 "byte_fallback", "ignore_merges", "vocab", "merges"},
                "model", where);
  if (get_or<double>(model, "dropout", 0, part) != 0) {
    fail_unsupported(where, "model.dropout other than 0", "null");
  }
  for (const auto* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const auto value = get_or<std::string>(model, key, "", part); !value.empty()) {
      fail_unsupported(where, fmt::format("model.{} \"{}\"", key, value), "null");
    }
  }
  if (get_or<bool>(model, "byte_fallback", false, part)) {
    fail_unsupported(where, "model.byte_fallback", "byte-level BPE, which needs none");
  }
  BpeOptions options{.unknown = std::nullopt,
                     .fuse_unknown = get_or<bool>(model, "fuse_unk", false, part),
                     .ignore_merges = get_or<bool>(model, "ignore_merges", false, part)};
  if (const auto unknown = get_or<std::string>(model, "unk_token", "", part); !unknown.empty()) {
    options.unknown = vocabulary.find(unknown);
  }
  return ByteLevelBpe(vocabulary, read_merges(model, vocabulary, where), options);
}

/// Reads added_tokens and puts those that the model does not have into the vocabulary.
std::vector<AddedToken> read_added_tokens(const json& list, Vocabulary& vocabulary, std::string_view where) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) {
    return tokens;
  }
  if (!list.is_array()) {
    fail(where, fmt::format("added_tokens is {}, expected an array", list.type_name()));
  }
  std::set<std::string> seen;
  for (const auto& entry : list) {
    const auto name = fmt::format("added_tokens[{}]", tokens.size());
    const auto part = fmt::format("{}: {}", where, name);
    check_members(entry, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}, name, where);
    AddedToken token{.content = get<std::string>(entry, "content", part),
                     .id = get<std::int32_t>(entry, "id", part),
                     .special = get<bool>(entry, "special", part),
                     .normalized = get<bool>(entry, "normalized", part),
                     .single_word = get<bool>(entry, "single_word", part),
                     .lstrip = get<bool>(entry, "lstrip", part),
                     .rstrip = get<bool>(entry, "rstrip", part)};
    if (token.content.empty()) {
      fail(part, "the content is empty");
    }
    if (!seen.insert(token.content).second) {
      fail(part, fmt::format("\"{}\" is there twice", token.content));
    }
    if (const auto id = vocabulary.find(token.content); !id) {
      with_context(fmt::format("reading {}", part), [&] { vocabulary.add(token.content, token.id); });
    } else if (*id != token.id) {
      fail(part, fmt::format("\"{}\" has the id {} here and {} in model.vocab", token.content, token.id, *id));
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

PreTokenizer read_pre_tokenizer(const json& part, std::string_view where) {
  const auto type = type_of(part, "pre_tokenizer", where);
  if (type != "ByteLevel") {
    fail_unsupported(where, fmt::format("pre_tokenizer of type {}", type), "ByteLevel (GPT-2, OPT)");
  }
  check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "pre_tokenizer", where);
  const auto name = fmt::format("{}: pre_tokenizer", where);
  PreTokenizer result{.add_prefix_space = get<bool>(part, "add_prefix_space", name), .words = std::nullopt};
  if (get_or<bool>(part, "use_regex", true, name)) {  // files of before 2022 do not say it
    result.words.emplace(gpt2_word_pattern());
  }
  return result;
}

Template read_template(const json& processor, const Vocabulary& vocabulary, std::string_view where) {
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
      if (vocabulary.token(id) == nullptr) {
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
void read_post_processor(const json& part, const Vocabulary& vocabulary, std::string_view where,
                         std::optional<Template>& found) {
  const auto type = type_of(part, "post_processor", where);
  if (type == "ByteLevel") {  // moves offsets, which nobody asks for here
    check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "post_processor", where);
  } else if (type == "TemplateProcessing") {
    if (found) {
      fail_unsupported(where, "post_processor with two templates", "one TemplateProcessing");
    }
    found = read_template(part, vocabulary, where);
  } else if (type == "Sequence") {
    check_members(part, {"type", "processors"}, "post_processor", where);
    for (const auto& step : get<std::vector<json>>(part, "processors", fmt::format("{}: post_processor", where))) {
      read_post_processor(step, vocabulary, where, found);
    }
  } else if (type != "null") {
    fail_unsupported(where, fmt::format("post_processor of type {}", type),
                     "null, ByteLevel, TemplateProcessing, Sequence");
  }
}

void check_decoder(const json& part, std::string_view where) {
  const auto type = type_of(part, "decoder", where);
  if (type != "ByteLevel") {
    fail_unsupported(where, fmt::format("decoder of type {}", type), "ByteLevel");
  }
  check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "decoder", where);
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_json(const json& file, std::string_view where) {
  check_members(file,
                {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                 "decoder", "model"},
                "the tokenizer", where);
  if (const auto version = get_or<std::string>(file, "version", "1.0", where); version != "1.0") {
    fail_unsupported(where, fmt::format("version {}", version), "1.0");
  }
  if (const auto type = type_of(member_or_null(file, "normalizer"), "normalizer", where); type != "null") {
    fail_unsupported(where, fmt::format("normalizer of type {}", type), "null");
  }
  auto pre_tokenizer = read_pre_tokenizer(member_or_null(file, "pre_tokenizer"), where);
  check_decoder(member_or_null(file, "decoder"), where);

  const json& model = member_or_null(file, "model");
  if (!model.is_object()) {
    fail(where, fmt::format("model is {}, expected an object", model.type_name()));
  }
  // The first files of GPT-2 have no type; what has merges is BPE.
  if (const auto type = get_or<std::string>(model, "type", model.contains("merges") ? "BPE" : "unknown",
                                            fmt::format("{}: model", where));
      type != "BPE") {
    fail_unsupported(where, fmt::format("model of type {}", type), "BPE");
  }
  auto vocabulary = with_context(fmt::format("reading {}", where), [&] { return read_vocabulary(model, where); });
  auto bpe = read_model(model, vocabulary, where);
  const auto added = read_added_tokens(member_or_null(file, "added_tokens"), vocabulary, where);
  std::optional<Template> special;
  read_post_processor(member_or_null(file, "post_processor"), vocabulary, where, special);
  return std::make_unique<ByteLevelTokenizer>(vocabulary, added, std::move(pre_tokenizer), std::move(bpe),
                                              std::move(special).value_or(Template{}));
}

}  // namespace gptqd::io
