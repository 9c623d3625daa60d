#include "io/tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/pipeline.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

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

std::vector<Merge> read_merges(const json& model, const Vocabulary& vocabulary, std::string_view where) {
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
  return merges;
}

Bpe read_model(const json& model, bool byte_level, std::string_view where) {
  if (!model.is_object()) {
    fail(where, fmt::format("model is {}, expected an object", model.type_name()));
  }
  const auto part = fmt::format("{}: model", where);
  // The first files of GPT-2 have no type; what has merges is BPE.
  if (const auto type = get_or<std::string>(model, "type", model.contains("merges") ? "BPE" : "unknown", part);
      type != "BPE") {
    fail_unsupported(where, fmt::format("model of type {}", type), "BPE");
  }
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
  auto vocabulary = with_context(fmt::format("reading {}", where), [&] { return read_vocabulary(model, where); });
  BpeOptions options{.byte_level = byte_level,
                     .unknown = std::nullopt,
                     .fuse_unknown = get_or<bool>(model, "fuse_unk", false, part),
                     .byte_fallback = get_or<bool>(model, "byte_fallback", false, part),
                     .ignore_merges = get_or<bool>(model, "ignore_merges", false, part)};
  if (const auto unknown = get_or<std::string>(model, "unk_token", "", part); !unknown.empty()) {
    options.unknown = vocabulary.find(unknown);
  }
  const auto merges = read_merges(model, vocabulary, where);
  return Bpe(std::move(vocabulary), merges, options);
}

/// The ids that Hugging Face tokenizers gives to added tokens, whatever the file says: the model's where the model has
/// the token, else the one behind the last one, and behind the model's.
class AddedIds {
 public:
  explicit AddedIds(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  std::int64_t next(const std::string& content) {
    const auto known = vocabulary_.find(content);
    const auto id = known ? std::int64_t{*known} : std::max(vocabulary_.size(), largest_ + 1);
    largest_ = std::max(largest_, id);
    return id;
  }

 private:
  const Vocabulary& vocabulary_;
  std::int64_t largest_ = -1;
};

std::vector<AddedToken> read_added_tokens(const json& list, const Vocabulary& vocabulary, std::string_view where) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) {
    return tokens;
  }
  if (!list.is_array()) {
    fail(where, fmt::format("added_tokens is {}, expected an array", list.type_name()));
  }
  AddedIds ids(vocabulary);
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
    if (const auto id = ids.next(token.content); id != token.id) {
      fail(part, fmt::format("\"{}\" has the id {} here, but Hugging Face tokenizers reads it as {}, {}; write the "
                             "file again with the library that is to be right",
                             token.content, token.id, id,
                             vocabulary.find(token.content) ? "its id in model.vocab"
                                                            : "the next id behind those of the tokens before it"));
    }
    if (const auto* other = vocabulary.token(token.id); other != nullptr && *other != token.content) {
      fail(part, fmt::format("\"{}\" and \"{}\" of model.vocab both have the id {}", token.content, *other, token.id));
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

/// The reference tells by offsets into the original text whether a piece comes first, which normalizers move.
void check_who_comes_first(const PreTokenizers& pre_tokenizers, const Normalizer* normalizer,
                           const std::vector<AddedToken>& added, std::string_view where) {
  if (!pre_tokenizers.asks_who_comes_first || normalizer == nullptr) {
    return;
  }
  const bool finds_normalized =
      std::any_of(added.begin(), added.end(), [](const AddedToken& token) { return token.normalized; });
  if (normalizer->may_move_start() || finds_normalized || pre_tokenizers.cuts_before_asking) {
    fail_unsupported(where, "Metaspace with prepend_scheme \"first\" together with this normalizer",
                     "it without a normalizer; with NFC, NFD, NFKC or NFKD where no added token is normalized and "
                     "Metaspace is the first pre-tokenizer");
  }
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
  auto normalizer = read_normalizer(member_or_null(file, "normalizer"), where);
  auto pre_tokenizers = read_pre_tokenizers(member_or_null(file, "pre_tokenizer"), where);
  auto decoder = read_decoder(member_or_null(file, "decoder"), where);
  auto model = read_model(member_or_null(file, "model"), pre_tokenizers.byte_level, where);
  auto added = read_added_tokens(member_or_null(file, "added_tokens"), model.vocabulary(), where);
  check_who_comes_first(pre_tokenizers, normalizer.get(), added, where);
  const auto has_token = [&](std::int32_t id) {
    return model.vocabulary().token(id) != nullptr ||
           std::any_of(added.begin(), added.end(), [id](const AddedToken& token) { return token.id == id; });
  };
  auto special = read_template(member_or_null(file, "post_processor"), has_token, where);
  return with_context(fmt::format("reading {}", where), [&] {
    return std::make_unique<PipelineTokenizer>(PipelineTokenizer::Parts{.normalizer = std::move(normalizer),
                                                                        .added = std::move(added),
                                                                        .pre_tokenizers = std::move(pre_tokenizers),
                                                                        .model = std::move(model),
                                                                        .special = std::move(special),
                                                                        .decoder = std::move(decoder)});
  });
}

}  // namespace gptqd::io
