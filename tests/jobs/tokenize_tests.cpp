/// @file gptq-dist tokenize: text to ids and back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/corpus/token_file.hpp"
#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

std::string golden(const std::string& style) { return source_path("tests/golden/tokenizers/" + style); }

CommandResult tokenize(const std::string& style, const Words& words, int ranks = 1) {
  Words all{"tokenize", "--model", golden(style)};
  all.insert(all.end(), words.begin(), words.end());
  return gptq_dist(ranks, all);
}

class Tokenize : public testing::Test {
 protected:
  std::string file(const std::string& name, std::string_view content) const {
    write_text(folder_ / name, content);
    return folder_ / name;
  }
  std::string path(const std::string& name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
};

TEST_F(Tokenize, ShowsCountsAndTheFirstTokens) {
  const auto result = tokenize("gpt2-style", {"--text", file("text", "hello hello</s>"), "--special"});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_THAT(result.out, StartsWith("15 bytes, 8 tokens of 2848 ids, "));
  EXPECT_THAT(result.out, AllOf(HasSubstr("2  \"</s>\"\n     266  \"he\"\n"), HasSubstr("507  \"\u0120he\"\n")));
  EXPECT_THAT(result.out, Not(HasSubstr("more")));
}

TEST_F(Tokenize, SaysHowManyItDoesNotShow) {
  const auto result = tokenize("gpt2-style", {"--text", file("text", std::string(2 * 25, '!'))});

  EXPECT_THAT(result.out, HasSubstr("more; --ids prints all ids"));
}

TEST_F(Tokenize, PrintsAllIdsAndTheirText) {
  const std::string text = "It's \u4e2d\u6587 \U0001f600\r\n\tx  ";
  const auto ids = tokenize("llama3-style", {"--text", file("text", text), "--ids"});
  const auto decoded = tokenize("llama3-style", {"--decode", file("ids", ids.out)});

  EXPECT_THAT(ids.out, testing::MatchesRegex("[0-9]+( [0-9]+)*\n"));
  EXPECT_EQ(decoded.out, text);
  EXPECT_EQ(decoded.code, 0);
}

TEST_F(Tokenize, ReadsStandardInput) {
  const auto program = gptqd::test::binary_path("gptq-dist").string();
  const auto script = program + " tokenize --model " + golden("bloom-style") + " --text - --ids < " +
                      file("text", "hello there") + " | " + program + " tokenize --model " + golden("bloom-style") +
                      " --decode -";

  EXPECT_EQ(run_command({"sh", "-c", script}).out, "hello there");
}

TEST_F(Tokenize, WritesFilesForCalibration) {
  const auto text = file("text", "hello hello</s>");

  const auto whole = tokenize("gpt2-style", {"--text", text, "--out", path("whole.safetensors")});
  const auto rows =
      tokenize("gpt2-style", {"--text", text, "--special", "--out", path("rows.safetensors"), "--seqlen", "3"});

  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_THAT(whole.out, HasSubstr("input_ids [1, 7] -> "));
  const auto one_row = io::read_token_file(path("whole.safetensors"));
  EXPECT_EQ(one_row.samples, 1);
  EXPECT_THAT(one_row.ids, ElementsAre(266, 79, 316, 507, 79, 316, 2));
  const auto windows = io::read_token_file(path("rows.safetensors"));
  EXPECT_EQ(windows.samples, 2);
  EXPECT_EQ(windows.seqlen, 3);
  EXPECT_THAT(windows.ids, ElementsAre(2, 266, 79, 316, 507, 79));  // two are left out
  EXPECT_EQ(tokenize("gpt2-style", {"--decode", path("rows.safetensors")}).out, "</s>hel\nlo hel");
  EXPECT_EQ(tokenize("gpt2-style", {"--decode", path("rows.safetensors"), "--skip-special"}).out, "hel\nlo hel");
}

TEST_F(Tokenize, WorksOnceUnderALauncher) {
  const auto result = tokenize("qwen2-style", {"--text", file("text", "a"), "--ids"}, 2);

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, tokenize("qwen2-style", {"--text", path("text"), "--ids"}).out);
}

TEST_F(Tokenize, RefusesCallsThatMakeNoSense) {
  const auto text = file("text", "a");
  for (const Words& words :
       {Words{}, Words{"--text", text, "--decode", text}, Words{"--decode", text, "--special"},
        Words{"--decode", text, "--out", "x"}, Words{"--text", text, "--skip-special"},
        Words{"--text", text, "--seqlen", "4"}, Words{"--text", text, "--out", path("x.safetensors"), "--seqlen", "0"},
        Words{"--text", text, "--out", path("x.safetensors"), "--ids"}}) {
    const auto result = tokenize("gpt2-style", words);

    EXPECT_EQ(result.code, 64) << testing::PrintToString(words);
    EXPECT_THAT(result.err, StartsWith("gptq-dist: "));
  }
}

TEST_F(Tokenize, NamesWhatIsWrongWithItsInput) {
  struct Case {
    Words words;
    std::string message;
  };
  for (const auto& [words, message] :
       {Case{{"--text", path("missing")}, "missing"}, Case{{"--decode", file("ids", "1 2 x")}, "\"x\" is no token id"},
        Case{{"--decode", file("minus", "1 -2")}, "\"-2\" is no token id"},
        Case{{"--decode", file("huge", "99999999999")}, "\"99999999999\" is no token id"},
        Case{{"--text", file("empty", ""), "--out", path("x.safetensors")}, "the text has 0 tokens"},
        Case{{"--text", file("short", "hello"), "--out", path("x.safetensors"), "--seqlen", "9"},
             "the text has 3 tokens, fewer than a row of 9"}}) {
    const auto result = tokenize("gpt2-style", words);

    EXPECT_EQ(result.code, 65) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
  }
  EXPECT_FALSE(std::filesystem::exists(path("x.safetensors")));
}

TEST_F(Tokenize, IdsWithoutATokenGiveNothing) {
  EXPECT_EQ(tokenize("gpt2-style", {"--decode", file("ids", "[266, 79,\n316]")}).code, 65);
  EXPECT_EQ(tokenize("gpt2-style", {"--decode", file("ids", "266, 79,\n316 2147483647")}).out, "hello");
}

TEST_F(Tokenize, AFolderWithoutATokenizerIsNamed) {
  const auto result = gptq_dist(1, Words{"tokenize", "--model", golden(""), "--text", file("text", "a")});

  EXPECT_EQ(result.code, 65);
  EXPECT_THAT(result.err, HasSubstr("no tokenizer in"));
}

}  // namespace
}  // namespace gptqd::jobs::test
