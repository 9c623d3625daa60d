// Folders without a tokenizer.json: vocab.json with merges.txt, and tokenizer.model.
#include <gmock/gmock.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "io/json_file.hpp"
#include "io/tokenizer.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using nlohmann::json;
using test::error_of;
using test::write_text;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

std::filesystem::path golden(const std::string& file) { return source_path("tests/golden/tokenizers/" + file); }

/// A folder with the golden vocab.json and merges.txt, as OPT's repositories are.
class OptFolder {
 public:
  OptFolder() {
    for (const auto* name : {"vocab.json", "merges.txt"}) {
      std::filesystem::copy_file(golden("gpt2-style") / name, folder_ / name);
    }
  }
  void write(const std::string& name, const json& content) { write_text(folder_ / name, content.dump()); }
  void write_config() { write("tokenizer_config.json", read_json(golden("gpt2-style/tokenizer_config.json"))); }
  std::filesystem::path path() const { return folder_.path(); }
  std::unique_ptr<Tokenizer> open() const { return Tokenizer::open(folder_.path()); }

 private:
  TemporaryFolder folder_;
};

TEST(VocabAndMerges, GiveTheIdsOfTheTokenizerJson) {
  OptFolder folder;
  folder.write_config();
  const auto tokenizer = folder.open();
  int cases = 0;

  for (const auto& expected : read_json(golden("gpt2-style/cases.json"))) {
    const auto text = expected["text"].get<std::string>();
    if (text.find("<s>") != std::string::npos || text.find("<unk>") != std::string::npos) {
      continue;  // special in the tokenizer.json, but no file of this folder says so
    }
    EXPECT_EQ(tokenizer->encode(text, SpecialTokens::none), expected["ids_plain"].get<Ids>()) << text;
    EXPECT_EQ(tokenizer->encode(text, SpecialTokens::add), expected["ids"].get<Ids>()) << text;
    EXPECT_EQ(tokenizer->decode(expected["ids_plain"].get<Ids>(), false), expected["decoded"].get<std::string>())
        << text;
    ++cases;
  }
  EXPECT_EQ(cases, 127);
}

// The ids are those of transformers 5.23, GPT2Tokenizer.from_pretrained, for this folder.
TEST(VocabAndMerges, TokensAreSpecialWhereAFileSaysSo) {
  OptFolder folder;
  folder.write_config();

  const auto tokenizer = folder.open();

  EXPECT_THAT(tokenizer->encode("<s>Hello</s>", SpecialTokens::add), ElementsAre(2, 31, 86, 33, 43, 348, 316, 2));
  EXPECT_THAT(tokenizer->encode("<pad>", SpecialTokens::none), ElementsAre(1));
  EXPECT_EQ(tokenizer->decode(Ids{1, 0, 2, 3}, true), "<s><unk>");
}

TEST(VocabAndMerges, ReadTheFlagsOfTokens) {
  OptFolder folder;
  const json token{{"__type", "AddedToken"}, {"content", "</s>"}, {"lstrip", false},
                   {"normalized", true},     {"rstrip", true},    {"single_word", false}};
  folder.write("special_tokens_map.json", {{"bos_token", token}, {"eos_token", token}, {"unk_token", token}});
  folder.write("added_tokens.json", {{"<new>", 2848}});

  const auto tokenizer = folder.open();

  EXPECT_THAT(tokenizer->encode("</s>  a<new><s>", SpecialTokens::add), ElementsAre(2, 68, 2848, 31, 86, 33));
  EXPECT_EQ(tokenizer->decode(Ids{2, 2848}, true), "<new>");
  EXPECT_EQ(tokenizer->vocab_size(), 2849);
}

TEST(VocabAndMerges, SpecialTokensSurroundATextAsTheConfigurationSays) {
  OptFolder folder;
  const auto ids_with = [&](const json& config) {
    folder.write("tokenizer_config.json", config);
    return folder.open()->encode("a", SpecialTokens::add);
  };

  EXPECT_THAT(ids_with({{"bos_token", "</s>"}, {"add_bos_token", true}}), ElementsAre(2, 68));
  EXPECT_THAT(ids_with({{"bos_token", "</s>"}, {"add_bos_token", false}}), ElementsAre(68));
  EXPECT_THAT(ids_with({{"bos_token", "</s>"}}), ElementsAre(68));
  EXPECT_THAT(ids_with({{"eos_token", "<pad>"}, {"add_eos_token", true}}), ElementsAre(68, 1));
  EXPECT_THAT(ids_with({{"add_prefix_space", true}}), ElementsAre(263));
  folder.write("config.json", {{"model_type", "opt"}});
  EXPECT_THAT(ids_with({{"bos_token", "</s>"}}), ElementsAre(2, 68));
  EXPECT_THAT(ids_with({{"bos_token", "</s>"}, {"add_bos_token", false}}), ElementsAre(68));
}

TEST(VocabAndMerges, AddedTokensHaveTheIdsTheyAreGiven) {
  OptFolder folder;
  folder.write(
      "tokenizer_config.json",
      json::parse(R"({"bos_token": "</s>", "added_tokens_decoder": {"2849": {"content": "<b>", "special": false},
                 "2848": {"content": "<a>", "special": true}, "2": {"content": "</s>", "special": true}}})"));

  const auto tokenizer = folder.open();

  EXPECT_THAT(tokenizer->encode("<b><a></s>", SpecialTokens::none), ElementsAre(2849, 2848, 2));
  EXPECT_EQ(tokenizer->decode(Ids{2849, 2848, 2}, true), "<b>");
}

TEST(VocabAndMerges, TakeLinesOfAnyEnd) {
  OptFolder folder;
  folder.write_config();
  auto text = test::read_text(folder.path() / "merges.txt");
  std::string with_returns;
  for (const char c : text) {
    with_returns += c == '\n' ? "\r\n" : std::string(1, c);
  }
  write_text(folder.path() / "merges.txt", with_returns);

  EXPECT_THAT(folder.open()->encode("hello", SpecialTokens::none), ElementsAre(266, 79, 316));
}

struct Damage {
  const char* file;
  const char* content;
  const char* message;
};

TEST(VocabAndMerges, RefuseWhatIsDamagedOrOfAnotherClass) {
  for (const auto& [file, content, message] : {
           Damage{"vocab.json", "[]", "expected an object"},
           Damage{"vocab.json", "{}", "model.vocab is empty"},
           Damage{"vocab.json", R"({"a": "0"})", "expected an integer"},
           Damage{"merges.txt", "#version: 0.2\nh e\nq\n", "model.merges[1] is \"q\""},
           Damage{"merges.txt", "h zzzz\n", "the right part \"zzzz\" is not in model.vocab"},
           Damage{"merges.txt", "\xff x\n", "not valid UTF-8"},
           Damage{"tokenizer_config.json", "[]", "expected an object"},
           Damage{"tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizerFast"})",
                  "tokenizer_class RobertaTokenizer without a tokenizer.json is not supported"},
           Damage{"tokenizer_config.json", R"({"add_bos_token": true})", "add_bos_token is set, but no file names"},
           Damage{"tokenizer_config.json", R"({"add_bos_token": "yes"})", "add_bos_token"},
           Damage{"tokenizer_config.json", R"({"bos_token": {"content": 5}})", "content"},
           Damage{"tokenizer_config.json", R"({"bos_token": ""})", "a token is empty"},
           Damage{"tokenizer_config.json", R"({"added_tokens_decoder": {"-1": {"content": "x"}}})",
                  "\"-1\" is no token id"},
           Damage{"tokenizer_config.json", R"({"added_tokens_decoder": {"99999999999": {"content": "x"}}})",
                  "no token id"},
           Damage{"added_tokens.json", R"({"x": 5000})", "token \"x\" has the id 5000 beside vocab.json and 91 in it"},
           Damage{"added_tokens.json", R"({"<x>": 5000})",
                  "has the id 5000 here, but Hugging Face tokenizers reads it as"},
       }) {
    OptFolder folder;
    folder.write_config();
    write_text(folder.path() / file, content);

    const auto error = error_of([&] { folder.open(); });

    EXPECT_EQ(error.kind(), ErrorKind::input) << file << content;
    EXPECT_THAT(error.message(), HasSubstr(message)) << file << content;
  }
}

TEST(VocabAndMerges, NeedTheNamesOfTheSpecialTokens) {
  const OptFolder folder;

  EXPECT_THAT(error_of([&] { folder.open(); }).message(),
              HasSubstr("neither tokenizer_config.json nor special_tokens_map.json"));
}

// The parts of a protocol buffer message.
std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) {
    bytes += static_cast<char>(value | 0x80);
  }
  return bytes + static_cast<char>(value);
}
std::string number_field(std::uint32_t field, std::uint64_t value) { return varint(field << 3) + varint(value); }
std::string bytes_field(std::uint32_t field, const std::string& bytes) {
  return varint(field << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string float_field(std::uint32_t field, float value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return varint(field << 3 | 5) + bytes;
}

enum PieceType { normal = 1, unknown = 2, control = 3, user_defined = 4, byte = 6 };

std::string piece(const std::string& text, PieceType type, float score) {
  return bytes_field(1, bytes_field(1, text) + float_field(2, score) + number_field(3, type));
}

struct ModelOptions {
  std::uint64_t type = 2;  // BPE
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  std::string charsmap{};
};

std::string specs(const ModelOptions& options = {}, bool byte_fallback = true) {
  return bytes_field(2, number_field(3, options.type) + number_field(35, byte_fallback ? 1 : 0) + number_field(40, 0) +
                            number_field(41, 1) + number_field(42, 2)) +
         bytes_field(3, bytes_field(1, "identity") +
                            (options.charsmap.empty() ? "" : bytes_field(2, options.charsmap)) +
                            number_field(3, options.add_dummy_prefix ? 1 : 0) +
                            number_field(4, options.remove_extra_whitespaces ? 1 : 0) + number_field(5, 1));
}

/// The SentencePiece model whose pieces are the tokens of a golden tokenizer.json of that kind, in order.
std::string model_of(const std::string& style) {
  const auto file = read_json(golden(style + "/tokenizer.json"));
  std::vector<std::string> tokens(file["model"]["vocab"].size());
  for (const auto& [token, id] : file["model"]["vocab"].items()) {
    tokens[id.get<std::size_t>()] = token;
  }
  std::string model;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const auto& token = tokens[id];
    auto type = token.size() == 6 && token.starts_with("<0x") ? byte : normal;
    for (const auto& added : file["added_tokens"]) {
      type = added["content"] == token ? control : type;
    }
    model += piece(token, token == "<unk>" ? unknown : type, -static_cast<float>(id));
  }
  return model + specs();
}

void write_model(const TemporaryFolder& folder, const std::string& style) {
  const auto file = read_json(golden(style + "/tokenizer.json"));
  auto config = read_json(golden(style + "/tokenizer_config.json"));
  for (const auto& token : file["added_tokens"]) {
    config["added_tokens_decoder"][std::to_string(token["id"].get<int>())] = token;
  }
  write_text(folder / "tokenizer.model", model_of(style));
  write_text(folder / "tokenizer_config.json", config.dump());
}

class GoldenSentencePiece : public testing::TestWithParam<const char*> {};

TEST_P(GoldenSentencePiece, GivesTheIdsOfTheTokenizerJson) {
  const TemporaryFolder folder;
  write_model(folder, GetParam());
  const auto tokenizer = Tokenizer::open(folder.path());

  for (const auto& expected : read_json(golden(GetParam()) / "cases.json")) {
    const auto text = expected["text"].get<std::string>();
    const auto plain = expected["ids_plain"].get<Ids>();
    EXPECT_EQ(tokenizer->encode(text, SpecialTokens::none), plain) << text;
    EXPECT_EQ(tokenizer->encode(text, SpecialTokens::add), expected["ids"].get<Ids>()) << text;
    EXPECT_EQ(tokenizer->decode(plain, false), expected["decoded"].get<std::string>()) << text;
  }
  for (const auto& expected : read_json(golden(GetParam()) / "decode_cases.json")) {
    EXPECT_EQ(tokenizer->decode(expected["ids"].get<Ids>(), true), expected["decoded_skip_special"].get<std::string>());
  }
  const auto ids = tokenizer->encode(test::read_text(source_path("jobs/demo/eval.txt")), SpecialTokens::none);
  const auto whole = Tokenizer::open(golden(GetParam()))
                         ->encode(test::read_text(source_path("jobs/demo/eval.txt")), SpecialTokens::none);
  EXPECT_EQ(ids, whole);
}

INSTANTIATE_TEST_SUITE_P(, GoldenSentencePiece, testing::Values("llama2-style", "mistral-style"), [](const auto& info) {
  return std::string(info.param).substr(0, std::string(info.param).find('-'));
});

/// A folder with the model of these pieces behind <unk>, <s> and </s>.
struct TinyModel {
  TinyModel(const std::string& pieces, const ModelOptions& options, const json& config = nullptr) {
    write_text(folder / "tokenizer.model", piece("<unk>", unknown, 0) + piece("<s>", control, 0) +
                                               piece("</s>", control, 0) + pieces + specs(options, false));
    if (!config.is_null()) {
      write_text(folder / "tokenizer_config.json", config.dump());
    }
  }
  std::unique_ptr<Tokenizer> open() const { return Tokenizer::open(folder.path()); }

  TemporaryFolder folder;
};

const std::string few_pieces = piece("\u2581", normal, -1) + piece("a", normal, -2) + piece("b", normal, -3) +
                               piece("ab", normal, -4) + piece("b\u2581a", user_defined, 0);  // 3 to 7

TEST(SentencePiece, AddsTheBeginningUnlessToldNotTo) {
  const auto ids = [](const json& config) {
    return TinyModel(few_pieces, {}, config).open()->encode("a", SpecialTokens::add);
  };

  EXPECT_THAT(ids(nullptr), ElementsAre(1, 3, 4));
  EXPECT_THAT(ids({{"add_bos_token", false}}), ElementsAre(3, 4));
  EXPECT_THAT(ids({{"add_eos_token", true}}), ElementsAre(1, 3, 4, 2));
  EXPECT_THAT(ids({{"bos_token", "</s>"}}), ElementsAre(2, 3, 4));
}

TEST(SentencePiece, BlanksComeBeforeEveryRunOrTheFirst) {
  const auto ids = [](const json& config, bool add_dummy_prefix = true) {
    return TinyModel(few_pieces, {.add_dummy_prefix = add_dummy_prefix}, config)
        .open()
        ->encode("a</s>a</s> a", SpecialTokens::none);
  };

  EXPECT_THAT(ids(nullptr), ElementsAre(3, 4, 2, 3, 4, 2, 3, 3, 4));
  EXPECT_THAT(ids({{"legacy", false}}), ElementsAre(3, 4, 2, 4, 2, 3, 4));
  EXPECT_THAT(ids({{"legacy", true}}, false), ElementsAre(4, 2, 4, 2, 3, 4));
}

TEST(SentencePiece, CutsNowhereThatAPieceReachesAcross) {
  const auto tokenizer = TinyModel(few_pieces, {}).open();
  std::string text;
  Ids expected{3};
  for (int i = 0; i < 50; ++i) {
    // "b a" is a piece wherever it stands; x and \u00e9 have none and become one unknown token.
    text += "ab ab ax\u00e9 ";
    expected.insert(expected.end(), {4, 7, 7, 0, 3});
  }

  EXPECT_EQ(tokenizer->encode(text, SpecialTokens::none), expected);
}

TEST(SentencePiece, TokensBesideTheModelHaveTheirIds) {
  const TinyModel model(few_pieces, {}, json::parse(R"({"pad_token": "<pad>", "added_tokens_decoder": {
    "9": {"content": "<x>", "special": false}, "1": {"content": "<s>", "special": true}}})"));

  const auto tokenizer = model.open();

  EXPECT_THAT(tokenizer->encode("<x><pad><s>", SpecialTokens::none), ElementsAre(9, 10, 1));
  EXPECT_EQ(tokenizer->vocab_size(), 11);
  EXPECT_EQ(tokenizer->decode(Ids{9, 8, 10, -1, 4, 100}, true), "<x>a");
}

TEST(SentencePiece, RefusesWhatItCannotDo) {
  const auto message = [](const std::string& pieces, const ModelOptions& options, const json& config = nullptr) {
    const auto error = error_of([&] { TinyModel(pieces, options, config).open(); });
    EXPECT_EQ(error.kind(), ErrorKind::input);
    return std::string(error.what());
  };

  EXPECT_THAT(message(few_pieces, {.type = 1}), HasSubstr("a SentencePiece model of type 1"));
  EXPECT_THAT(message(few_pieces, {.charsmap = "xxxxxxxx"}), HasSubstr("precompiled_charsmap"));
  EXPECT_THAT(message(few_pieces, {}, {{"tokenizer_class", "T5Tokenizer"}}), HasSubstr("tokenizer_class T5Tokenizer"));
  EXPECT_THAT(message(piece("a", normal, 0) + piece("a", normal, 1), {}),
              HasSubstr("the sentencepiece library refuses"));
  EXPECT_THAT(message(piece("a\xff", normal, 0), {}), HasSubstr("UTF-8"));
  EXPECT_THAT(message("\x0b", {}), HasSubstr("is damaged"));
  EXPECT_THAT(message("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", {}), HasSubstr("is damaged"));
  EXPECT_THAT(message(few_pieces, {}, json::parse(R"({"added_tokens_decoder": {"4": {"content": "<x>"}}})")),
              HasSubstr("\"a\" and \"<x>\" both have the id 4"));
  EXPECT_THAT(message(few_pieces, {}, json::parse(R"({"added_tokens_decoder": {"5": {"content": "<s>"}}})")),
              HasSubstr("has the id 5 beside the model and 1 in it"));
  EXPECT_THAT(message(few_pieces, {}, {{"bos_token", 5}}), HasSubstr("bos_token"));
}

TEST(TokenizerFolders, TokenizerJsonComesFirstThenVocab) {
  const TemporaryFolder folder;
  write_model(folder, "llama2-style");
  EXPECT_EQ(Tokenizer::open(folder.path())->vocab_size(), 1762);

  for (const auto* name : {"vocab.json", "merges.txt", "tokenizer_config.json"}) {
    std::filesystem::copy_file(golden("gpt2-style") / name, folder / name,
                               std::filesystem::copy_options::overwrite_existing);
  }
  EXPECT_EQ(Tokenizer::open(folder.path())->vocab_size(), 2848);

  std::filesystem::copy_file(golden("qwen2-style/tokenizer.json"), folder / "tokenizer.json");
  EXPECT_EQ(Tokenizer::open(folder.path())->vocab_size(), 2721);
}

}  // namespace
}  // namespace gptqd::io
