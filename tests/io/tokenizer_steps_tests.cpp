// Normalizers, pre-tokenizers and decoders, each for itself, read from what tokenizer.json says. The results are those
// of Hugging Face tokenizers 0.23.3.
#include <gmock/gmock.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <ostream>

#include "io/tokenizer/decoder.hpp"
#include "io/tokenizer/normalizer.hpp"
#include "io/tokenizer/pre_tokenizer.hpp"
#include "tests/io/file_support.hpp"

namespace gptqd::io {
namespace {

using nlohmann::json;
using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;
using Pieces = std::vector<std::string>;

std::string normalized(const json& part, std::string text) {
  read_normalizer(part, "tokenizer.json")->normalize(text);
  return text;
}
std::string normalized(const char* part, std::string text) { return normalized(json::parse(part), std::move(text)); }

struct Form {
  const char* name;
  const char* text;
  Pieces expected;  // NFC, NFD, NFKC, NFKD

  friend void PrintTo(const Form& form, std::ostream* out) { *out << form.name; }
};
class UnicodeForms : public testing::TestWithParam<Form> {};

TEST_P(UnicodeForms, AreThoseOfTheReference) {
  Pieces got;
  for (const auto* name : {"NFC", "NFD", "NFKC", "NFKD"}) {
    got.push_back(normalized(json{{"type", name}}, GetParam().text));
  }

  EXPECT_EQ(got, GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    , UnicodeForms,
    testing::Values(
        Form{"Nothing", "", {"", "", "", ""}},
        Form{"Ascii", "plain \n", {"plain \n", "plain \n", "plain \n", "plain \n"}},
        Form{"Marks", "e\u0301\u0323", {"\u1eb9\u0301", "e\u0323\u0301", "\u1eb9\u0301", "e\u0323\u0301"}},
        Form{"MarksFirst", "\u0301\u0316", {"\u0316\u0301", "\u0316\u0301", "\u0316\u0301", "\u0316\u0301"}},
        Form{"Compatibility", "\u212b\ufb01", {"\u00c5\ufb01", "A\u030a\ufb01", "\u00c5fi", "A\u030afi"}},
        Form{"TwoWays", "\u1e9b\u0323", {"\u1e9b\u0323", "\u017f\u0323\u0307", "\u1e69", "s\u0323\u0307"}},
        Form{"Hangul", "\u1112\u1161\u11ab", {"\ud55c", "\u1112\u1161\u11ab", "\ud55c", "\u1112\u1161\u11ab"}},
        Form{"Excluded", "\u0344", {"\u0308\u0301", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301"}},
        Form{"HanStartsAfresh",
             "x\u0301\u4e2d\u0301",
             {"x\u0301\u4e2d\u0301", "x\u0301\u4e2d\u0301", "x\u0301\u4e2d\u0301", "x\u0301\u4e2d\u0301"}},
        // Newer than the reference's tables: left alone, and marks stay where they are.
        Form{"NewerSquare", "\u32ff", {"\u32ff", "\u32ff", "\u32ff", "\u32ff"}},
        Form{"NewerPair",
             "\U00011935\U00011930",
             {"\U00011935\U00011930", "\U00011935\U00011930", "\U00011935\U00011930", "\U00011935\U00011930"}},
        Form{"NewerMark", "a\u0897\u0316", {"a\u0897\u0316", "a\u0897\u0316", "a\u0897\u0316", "a\u0897\u0316"}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Normalizers, OrderManyMarksInNoTime) {
  std::string text = "a";
  for (int i = 0; i < 200'000; ++i) {
    text += i % 2 == 0 ? "\u0301" : "\u0316";
  }

  const auto start = std::chrono::steady_clock::now();
  const auto result = normalized(R"({"type": "NFD"})", text);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  EXPECT_TRUE(result.starts_with("a\u0316\u0316") && result.ends_with("\u0301\u0301"));
  EXPECT_EQ(result.size(), text.size());
  EXPECT_LT(seconds.count(), 20);  // the square of the number would take an hour
}

TEST(Normalizers, PrependNothingToNothing) {
  EXPECT_EQ(normalized(R"({"type": "Prepend", "prepend": "xy"})", "ab"), "xyab");
  EXPECT_EQ(normalized(R"({"type": "Prepend", "prepend": "xy"})", ""), "");
}

TEST(Normalizers, StripEitherEnd) {
  EXPECT_EQ(normalized(R"({"type": "Strip", "strip_left": true, "strip_right": false})", " \u3000a b "), "a b ");
  EXPECT_EQ(normalized(R"({"type": "Strip", "strip_left": false, "strip_right": true})", " a b\u2028 \n"), " a b");
  EXPECT_EQ(normalized(R"({"type": "Strip", "strip_left": true, "strip_right": true})", " \t\n "), "");
  EXPECT_EQ(normalized(R"({"type": "Strip", "strip_left": true, "strip_right": true})", "\u180ea"), "\u180ea");
}

TEST(Normalizers, ReplaceInTheOrderOfASequence) {
  const auto* sequence = R"({"type": "Sequence", "normalizers": [
    {"type": "Replace", "pattern": {"String": "b."}, "content": "xx"},
    {"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""}, {"type": "Prepend", "prepend": "$1"}]})";

  EXPECT_EQ(normalized(sequence, "ab.xcbx"), "$1acb");
  EXPECT_EQ(normalized(R"({"type": "Sequence", "normalizers": []})", "a"), "a");
}

TEST(Normalizers, NullIsNone) { EXPECT_EQ(read_normalizer(nullptr, "tokenizer.json"), nullptr); }

Pieces pieces(const char* part, std::string_view text, bool comes_first = true) {
  Pieces result;
  read_pre_tokenizers(json::parse(part), "tokenizer.json").apply({text, comes_first}, [&](const Piece& piece) {
    result.emplace_back(piece.text);
  });
  return result;
}

TEST(PreTokenizers, DigitsStandAlone) {
  EXPECT_THAT(pieces(R"({"type": "Digits", "individual_digits": false})", "a12\u00b2\u2167 b\uff13"),
              ElementsAre("a", "12\u00b2\u2167", " b", "\uff13"));
  EXPECT_THAT(pieces(R"({"type": "Digits", "individual_digits": true})", "a12\u00b2\u2167 b\uff13"),
              ElementsAre("a", "1", "2", "\u00b2", "\u2167", " b", "\uff13"));
}

TEST(PreTokenizers, MetaspaceShowsBlanks) {
  const auto* first = R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true})";
  const auto* always = R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false})";
  const auto* never = R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"})";

  EXPECT_THAT(pieces(first, " \u2581a  b"), ElementsAre("\u2581", "\u2581a", "\u2581", "\u2581b"));
  EXPECT_THAT(pieces(first, "a b"), ElementsAre("\u2581a", "\u2581b"));
  EXPECT_THAT(pieces(first, "a b", false), ElementsAre("a", "\u2581b"));
  EXPECT_THAT(pieces(always, "a  b\u2581", false), ElementsAre("\u2581a\u2581\u2581b\u2581"));
  EXPECT_THAT(pieces(always, " a"), ElementsAre("\u2581a"));
  EXPECT_THAT(pieces(never, "a b_"), ElementsAre("a", "_b", "_"));
}

TEST(PreTokenizers, OldMetaspaceSaysLess) {
  EXPECT_THAT(
      pieces(R"({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true, "str_rep": "x"})", "a b", false),
      ElementsAre("\u2581a", "\u2581b"));
  EXPECT_THAT(error_of([] {
                pieces(R"({"type": "Metaspace", "replacement": "▁", "add_prefix_space": false})", "a");
              }).message(),
              HasSubstr("add_prefix_space is false, but prepend_scheme is \"always\""));
}

TEST(PreTokenizers, StepsOfASequenceGetThePiecesOfTheOnesBefore) {
  const auto* sequence = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": false},
    {"type": "Digits", "individual_digits": true},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}]})";

  EXPECT_THAT(pieces(sequence, "a-1b 2"), ElementsAre("\u2581a", "1", "b", "\u2581", "2"));
  EXPECT_THAT(pieces(sequence, "-a"), ElementsAre("a"));  // what was removed came first
  EXPECT_THAT(pieces(sequence, ""), ElementsAre());
}

TEST(PreTokenizers, ByteLevelPutsABlankBeforeEveryPieceItGets) {
  const auto* sequence = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false}]})";

  EXPECT_THAT(pieces(sequence, "a-b c"), ElementsAre(" a", " -", " b c"));
  EXPECT_TRUE(read_pre_tokenizers(json::parse(sequence), "tokenizer.json").byte_level);
}

std::string decoded(const json& part, Pieces tokens) {
  read_decoder(part, "tokenizer.json")->decode(tokens);
  std::string text;
  for (const auto& token : tokens) {
    text += token;
  }
  return text;
}
std::string decoded(const char* part, Pieces tokens) { return decoded(json::parse(part), std::move(tokens)); }

TEST(Decoders, NoneMeansBlanksBetweenTokens) {
  EXPECT_EQ(decoded("null", {"a", "b", ""}), "a b ");
  EXPECT_EQ(decoded("null", {}), "");
}

TEST(Decoders, ByteFallbackReadsRunsOfBytes) {
  const auto* bytes = R"({"type": "ByteFallback"})";

  EXPECT_EQ(decoded(bytes, {"a", "<0xE5>", "<0x8f>", "<0xab>", "b"}), "a\u53ebb");
  EXPECT_EQ(decoded(bytes, {"<0xE5>", "<0x8F>", "a"}), "\ufffd\ufffda");
  EXPECT_EQ(decoded(bytes, {"<0x41>", "<0xE5>"}), "\ufffd\ufffd");  // a run as a whole
  EXPECT_EQ(decoded(bytes, {"<0xE5>"}), "\ufffd");
  EXPECT_EQ(decoded(bytes, {"<0x4>", "<0xG1>", "<0x411>", "<0x4", "<0x>"}), "<0x4><0xG1><0x411><0x4<0x>");
  EXPECT_EQ(decoded(bytes, {"<0x+5>"}), "\x05");
}

TEST(Decoders, MetaspaceGivesBlanksBack) {
  EXPECT_EQ(decoded(R"({"type": "Metaspace", "replacement": "▁"})", {"\u2581a\u2581", "\u2581b\u2581c"}), "a b c");
  EXPECT_EQ(decoded(R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})", {"\u2581a", "\u2581b"}),
            " a b");
}

TEST(Decoders, StripFromEachToken) {
  const auto* strip = R"({"type": "Strip", "content": "H", "start": 1, "stop": 2})";

  EXPECT_EQ(decoded(strip, {"HHeyHHH"}), "HeyH");
  EXPECT_EQ(decoded(strip, {"friend", "H", "HH", ""}), "friend");
}

TEST(Decoders, TakeTheirOrderInASequence) {
  const auto* llama =
      R"({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";

  EXPECT_EQ(decoded(llama, {"\u2581\u2581a", "<0x0A>", "\u2581b"}), " a\n b");
  EXPECT_EQ(decoded(llama, {}), "");
}

TEST(Decoders, ByteLevelSpellsBytes) {
  EXPECT_EQ(decoded(R"({"type": "ByteLevel"})", {"\u0120a", "\u00e4\u00b8", "\u0143", "x y", "\u00e4"}),
            " a\u4e2dx y\ufffd");
}

struct BadStep {
  const char* name;
  const char* part;
  const char* json;
  const char* message;

  friend void PrintTo(const BadStep& refusal, std::ostream* out) { *out << refusal.name; }
};
class StepRefusal : public testing::TestWithParam<BadStep> {};

TEST_P(StepRefusal, NamesWhatItRefuses) {
  const auto error = error_of([] {
    const std::string part = GetParam().part;
    const auto settings = json::parse(GetParam().json);
    if (part == "normalizer") {
      read_normalizer(settings, "tokenizer.json");
    } else if (part == "pre_tokenizer") {
      read_pre_tokenizers(settings, "tokenizer.json");
    } else {
      read_decoder(settings, "tokenizer.json");
    }
  });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.what(), HasSubstr(GetParam().message));
  EXPECT_THAT(error.what(), HasSubstr("tokenizer.json"));
}

INSTANTIATE_TEST_SUITE_P(
    , StepRefusal,
    testing::Values(
        BadStep{"Lowercase", "normalizer", R"({"type": "Lowercase"})", "normalizer of type Lowercase is not supported"},
        BadStep{"ByteLevelNormalizer", "normalizer", R"({"type": "ByteLevel"})", "normalizer of type ByteLevel"},
        BadStep{"NestedNormalizer", "normalizer", R"({"type": "Sequence", "normalizers": [{"type": "Nmt"}]})",
                "type Nmt"},
        BadStep{"NormalizerSetting", "normalizer", R"({"type": "NFC", "x": 1})", "a setting \"x\""},
        BadStep{"EmptyString", "normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": "x"})",
                "the string is empty"},
        BadStep{"TwoPatterns", "normalizer",
                R"({"type": "Replace", "pattern": {"String": "a", "Regex": "b"}, "content": "x"})",
                "neither one String"},
        BadStep{"EmptyMatches", "normalizer", R"({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "x"})",
                "may match nothing at all"},
        BadStep{"BadRegex", "normalizer", R"({"type": "Replace", "pattern": {"Regex": "(a"}, "content": "x"})", "(a"},
        BadStep{"Whitespace", "pre_tokenizer", R"({"type": "Whitespace"})", "pre_tokenizer of type Whitespace"},
        BadStep{"BehindByteLevel", "pre_tokenizer",
                R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": false},
                    {"type": "Digits", "individual_digits": true}]})",
                "Digits behind ByteLevel"},
        BadStep{"Behavior", "pre_tokenizer",
                R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "isolated", "invert": false})",
                "behavior \"isolated\""},
        BadStep{"SplitRegex", "pre_tokenizer",
                R"({"type": "Split", "pattern": {"Regex": "\\h"}, "behavior": "Isolated", "invert": false})",
                "this escape (\"\\h\""},
        BadStep{"Replacement", "pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})",
                "expected one character"},
        BadStep{"PrependScheme", "pre_tokenizer",
                R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "last"})", "prepend_scheme \"last\""},
        BadStep{"WordPiece", "decoder", R"({"type": "WordPiece"})", "decoder of type WordPiece is not supported"},
        BadStep{"NullInASequence", "decoder", R"({"type": "Sequence", "decoders": [null]})", "decoder of type null"},
        BadStep{"NegativeStrip", "decoder", R"({"type": "Strip", "content": " ", "start": -1, "stop": 0})",
                "start is -1"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace gptqd::io
