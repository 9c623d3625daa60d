// Regular expressions of the tokenizer: PCRE2, Oniguruma's syntax in it, and cutting at matches. What pieces are
// expected is what Hugging Face tokenizers 0.23.3 gives.
#include <gmock/gmock.h>

#include <ostream>

#include "io/tokenizer/oniguruma.hpp"
#include "io/tokenizer/regex.hpp"
#include "io/tokenizer/split.hpp"
#include "tests/io/file_support.hpp"

namespace gptqd::io {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;
using Pieces = std::vector<std::string>;

Pieces pieces(const Regex& regex, std::string_view text, SplitBehavior behavior = SplitBehavior::isolated,
              bool invert = false) {
  Pieces result;
  split(text, regex, behavior, invert, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

TEST(Regex, GivesMatchesAndWhatLiesBetween) {
  const Regex regex("b+");

  EXPECT_THAT(pieces(regex, "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(pieces(regex, "xyz"), ElementsAre("xyz"));
  EXPECT_THAT(pieces(regex, ""), ElementsAre());
}

TEST(Regex, CutsAtEmptyMatches) {
  EXPECT_THAT(pieces(Regex("b*"), "a\u00e9bbc"), ElementsAre("a", "\u00e9", "bb", "c"));
  EXPECT_THAT(pieces(Regex("(?=c)"), "abc\U0001f600"), ElementsAre("ab", "c\U0001f600"));
  EXPECT_THAT(pieces(Regex("x*"), "abc"), ElementsAre("a", "b", "c"));
}

TEST(Regex, KnowsWhetherItMayMatchNothing) {
  EXPECT_TRUE(Regex("a*").may_match_empty());
  EXPECT_TRUE(Regex("(?=c)").may_match_empty());
  EXPECT_FALSE(Regex("a+|bc").may_match_empty());
}

TEST(Regex, ReplacesMatches) {
  EXPECT_EQ(Regex("b+").replaced("abbcb", "-"), "a-c-");
  EXPECT_EQ(Regex("b+").replaced("", "-"), "");
  EXPECT_EQ(Regex("x").replaced("abc", "-"), "abc");
}

TEST(Regex, NamesTheFaultOfAPattern) {
  const auto error = error_of([] { Regex regex("a(b"); });
  const auto named = error_of([] { Regex regex("a(b", "what the file says"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("a(b: PCRE2 refuses it at byte 3"));
  EXPECT_THAT(named.message(), HasSubstr("what the file says: PCRE2 refuses"));
}

TEST(Regex, MatchesWhatNeedsMoreThanTheCompiledCodesStack) {
  const Regex regex("(?:a|b)*c");
  const std::string text(100'000, 'a');

  EXPECT_THAT(pieces(regex, text + "c"), ElementsAre(text + "c"));
}

TEST(Regex, GivesUpWithAMessage) {
  const Regex regex("(a|aa)+$");

  const auto error = error_of([&] { pieces(regex, std::string(200, 'a') + "b"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("PCRE2 gives up at byte 0"));
}

TEST(Split, TreatsMatchesAsTold) {
  const Regex regex("b");
  const auto cut = [&](SplitBehavior behavior, bool invert) { return pieces(regex, "abbacb", behavior, invert); };

  EXPECT_THAT(cut(SplitBehavior::removed, false), ElementsAre("a", "ac"));
  EXPECT_THAT(cut(SplitBehavior::removed, true), ElementsAre("b", "b", "b"));
  EXPECT_THAT(cut(SplitBehavior::isolated, false), ElementsAre("a", "b", "b", "ac", "b"));
  EXPECT_THAT(cut(SplitBehavior::isolated, true), ElementsAre("a", "b", "b", "ac", "b"));
  EXPECT_THAT(cut(SplitBehavior::merged_with_previous, false), ElementsAre("ab", "b", "acb"));
  EXPECT_THAT(cut(SplitBehavior::merged_with_previous, true), ElementsAre("a", "b", "bac", "b"));
  EXPECT_THAT(cut(SplitBehavior::merged_with_next, false), ElementsAre("a", "b", "bac", "b"));
  EXPECT_THAT(cut(SplitBehavior::merged_with_next, true), ElementsAre("ab", "b", "acb"));
  EXPECT_THAT(cut(SplitBehavior::contiguous, false), ElementsAre("a", "bb", "ac", "b"));
  EXPECT_THAT(cut(SplitBehavior::contiguous, true), ElementsAre("a", "bb", "ac", "b"));
}

TEST(Split, TreatsEmptyMatchesLikeOthers) {
  const Regex regex("(?=b)");

  EXPECT_THAT(pieces(regex, "abbacb", SplitBehavior::removed, true), ElementsAre());
  for (const auto behavior : {SplitBehavior::removed, SplitBehavior::isolated, SplitBehavior::merged_with_previous,
                              SplitBehavior::merged_with_next, SplitBehavior::contiguous}) {
    EXPECT_THAT(pieces(regex, "abbacb", behavior), ElementsAre("a", "b", "bac", "b"));
  }
}

TEST(Split, KnowsTheNamesOfTokenizerJson) {
  EXPECT_EQ(split_behavior("MergedWithNext"), SplitBehavior::merged_with_next);
  EXPECT_EQ(split_behavior("Contiguous"), SplitBehavior::contiguous);
  EXPECT_EQ(split_behavior("isolated"), std::nullopt);
}

struct Reading {
  const char* name;
  const char* pattern;
  const char* text;
  Pieces expected;

  friend void PrintTo(const Reading& reading, std::ostream* out) { *out << reading.name; }
};
class OnigurumaReading : public testing::TestWithParam<Reading> {};

TEST_P(OnigurumaReading, CutsAsTheReference) {
  EXPECT_EQ(pieces(Regex(pcre2_from_oniguruma(GetParam().pattern)), GetParam().text), GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    , OnigurumaReading,
    testing::Values(
        Reading{"Words", R"(\w+)", "a\u00b2b _9\u00bc", {"a\u00b2b", " ", "_9\u00bc"}},
        Reading{"WordsInAClass", R"([\w]+)", "a\u00b2b _9\u00bc", {"a", "\u00b2", "b", " ", "_9", "\u00bc"}},
        Reading{"NoWords", R"(\W)", "a\u00b2b c", {"a\u00b2b", " ", "c"}},
        Reading{"CaseIgnored", R"((?i:'s|k))", "'\u017f\u212aKs", {"'\u017f", "\u212a", "K", "s"}},
        Reading{"CaseCountsBehindTheGroup", R"((?i:a)b)", "ABAb", {"AB", "Ab"}},
        Reading{"Lazy", R"(\p{Lu}\p{Ll}*?)", "ABc", {"A", "B", "c"}},
        Reading{"Complement", R"(\P{L}+)", "ab12c", {"ab", "12", "c"}},
        Reading{"ComplementWithCaret", R"(\p{^L}+)", "ab12c", {"ab", "12", "c"}},
        Reading{"SetsInANegatedClass", R"([^\s\p{L}])", "a1 b", {"a", "1", " b"}},
        Reading{"NestedClass", R"([a-c[x-z]_]+)", "abxq_z", {"abx", "q", "_z"}},
        Reading{"Bloom",
                " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
                "a|b (c) d\u0964e",
                {"a", "|", "b", " (", "c", ")", " d", "\u0964", "e"}},
        Reading{"OpenInterval", "e{,2}", "aeee", {"a", "ee", "e"}},
        Reading{"Interval", "a{2}", "aaaaa", {"aa", "aa", "a"}},
        Reading{"LazyInterval", "a{1,2}?", "aaa", {"a", "a", "a"}},
        Reading{"Escapes", R"(\x{4e2d}|\u6587|\x41)", "\u4e2d\u6587A!", {"\u4e2d", "\u6587", "A", "!"}},
        Reading{"EscapedSigns", R"([\]\-\\])", "a]-\\", {"a", "]", "-", "\\"}},
        Reading{"EscapedMetacharacters", R"(\$\.\*)", "a$.*b", {"a", "$.*", "b"}},
        Reading{"VerticalTab", R"(\v)", "a\v\f", {"a", "\v", "\f"}},
        Reading{"Digits", R"(\d+)", "1a\uff12\U00011bf0", {"1", "a", "\uff12\U00011bf0"}},
        Reading{"Possessive", "a++b", "aabc", {"aab", "c"}}, Reading{"Atomic", "(?>a|ab)c", "abcac", {"abc", "ac"}},
        Reading{"DotStopsAtLineEnds", ".+", "ab\ncd\r", {"ab", "\n", "cd\r"}},
        Reading{"Start", R"(\A.)", "abc", {"a", "bc"}}, Reading{"End", R"(.\z)", "abc", {"ab", "c"}},
        Reading{"Unicode6Spaces", R"(\s+(?!\S)|\s+)", "a \u180e  b", {"a", " ", "\u180e", " ", " ", "b"}},
        Reading{"Unicode16Letters", R"(\p{L}+)", "a\U0002ebf0b\u1c8a1", {"a\U0002ebf0b\u1c8a", "1"}},
        Reading{"Unicode16Numbers", R"(\p{N}+)", "1\U00011f50 x", {"1\U00011f50", " x"}},
        Reading{"HyphenFirst", "[-a]+", "a-b", {"a-", "b"}}, Reading{"HyphenLast", "[a-]+", "a-b", {"a-", "b"}},
        Reading{"Gpt2",
                R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                "I'll  go'S 3rd!?\n\n x ",
                {"I", "'ll", " ", " go", "'", "S", " 3", "rd", "!?", "\n\n", " x", " "}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Oniguruma, RefusesWhatPcre2ReadsDifferently) {
  for (const auto* pattern : {"^a",
                              "a$",
                              R"(\ba)",
                              R"(\h)",
                              R"(\R)",
                              R"(\1(a))",
                              R"(\k<n>)",
                              R"(\p{Han})",
                              R"(\p{Mn})",
                              R"(\pL)",
                              "(?<=a)b",
                              "(?i)a",
                              "(?m:a)",
                              "(?<n>a)",
                              "(?#x)a",
                              "(*ACCEPT)",
                              "[a&&b]",
                              "[[:alpha:]]",
                              "[[^a]b]",
                              R"([\S])",
                              R"([\W\s])",
                              R"([^\P{L}])",
                              "[]a]",
                              "[b-a]",
                              R"([\d-z])",
                              R"([a-\d])",
                              "[a",
                              "a{2,1}",
                              "a{x}",
                              "a{2}+",
                              "a{2}?",
                              "{",
                              "(a",
                              "a)",
                              "\\",
                              "[\\",
                              R"(\xff)",
                              R"(\x{110000})",
                              R"(\ud800)",
                              R"(\u12)",
                              R"((?i:\u00e9))",
                              R"((?i:\p{Lu}))",
                              "a\xff"}) {
    const auto error = error_of([&] { Regex regex(pcre2_from_oniguruma(pattern), pattern); });

    EXPECT_EQ(error.kind(), ErrorKind::input) << pattern;
    EXPECT_THAT(error.message(), HasSubstr("regular expression")) << pattern;
  }
}

TEST(Oniguruma, NamesWhatItRefuses) {
  EXPECT_THAT(error_of([] { pcre2_from_oniguruma(R"(a|\h+)"); }).message(),
              HasSubstr(R"(regular expression a|\h+: this escape ("\h" at byte 2) is not supported yet)"));
  EXPECT_THAT(error_of([] { pcre2_from_oniguruma("[a-z&&[^c]]"); }).message(), HasSubstr("an intersection of classes"));
}

TEST(LiteralPattern, MatchesTheTextAlone) {
  EXPECT_THAT(pieces(Regex(literal_pattern("a.*[")), "xa.*[aa["), ElementsAre("x", "a.*[", "aa["));
  EXPECT_THAT(pieces(Regex(literal_pattern("\u2581")), "a\u2581b"), ElementsAre("a", "\u2581", "b"));
}

}  // namespace
}  // namespace gptqd::io
