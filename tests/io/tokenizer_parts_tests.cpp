// The parts of the tokenizer, each for itself: UTF-8, splitting, merging, the byte alphabet.
#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <ostream>
#include <random>

#include "io/tokenizer/byte_alphabet.hpp"
#include "io/tokenizer/joints.hpp"
#include "io/tokenizer/merge_table.hpp"
#include "io/tokenizer/protobuf.hpp"
#include "io/tokenizer/unicode_tables.hpp"
#include "io/tokenizer/utf8.hpp"
#include "io/tokenizer/vocabulary.hpp"
#include "io/tokenizer/word_cache.hpp"
#include "tests/io/file_support.hpp"

namespace gptqd::io {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;

struct Repair {
  const char* name;
  std::string text;
  std::string expected;

  friend void PrintTo(const Repair& repair, std::ostream* out) { *out << repair.name; }
};
class Utf8Repair : public testing::TestWithParam<Repair> {};

TEST_P(Utf8Repair, ReplacesMaximalSubparts) {
  EXPECT_EQ(replace_invalid_utf8(GetParam().text), GetParam().expected);
  EXPECT_EQ(is_valid_utf8(GetParam().text), GetParam().text == GetParam().expected);
}

#define GPTQD_R "\xef\xbf\xbd"
INSTANTIATE_TEST_SUITE_P(
    , Utf8Repair,
    testing::Values(Repair{"Empty", "", ""},
                    Repair{"Ascii", "plain ASCII, longer than a word", "plain ASCII, longer than a word"},
                    Repair{"EveryLength", "\u00e9 \u4e2d \U0001f600 \ud7ff\ue000\U0010ffff",
                           "\u00e9 \u4e2d \U0001f600 \ud7ff\ue000\U0010ffff"},
                    Repair{"Nul", std::string("a\0b", 3), std::string("a\0b", 3)},
                    // Unicode 15, tables 3-8 to 3-11.
                    Repair{"Overlong", "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41",
                           GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R "A"},
                    Repair{"Surrogates", "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41",
                           GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R "A"},
                    Repair{"TooLarge", "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42",
                           GPTQD_R GPTQD_R GPTQD_R GPTQD_R GPTQD_R "A" GPTQD_R GPTQD_R "B"},
                    Repair{"Truncated", "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", GPTQD_R GPTQD_R GPTQD_R GPTQD_R "A"},
                    Repair{"Mixed", "\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
                           "a" GPTQD_R GPTQD_R GPTQD_R "b" GPTQD_R "c" GPTQD_R GPTQD_R "d"},
                    Repair{"CutAtTheEnd", "cut \xf0\x9f\x98", "cut " GPTQD_R},
                    Repair{"Continuation", "\x80", GPTQD_R}));
#undef GPTQD_R

TEST(Utf8, WritesAndReadsEveryScalarValue) {
  for (char32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point >= 0xd800 && code_point < 0xe000) {
      continue;
    }
    std::string text;
    append_utf8(text, code_point);

    ASSERT_TRUE(is_valid_utf8(text)) << std::hex << static_cast<std::uint32_t>(code_point);
    ASSERT_EQ(utf8_step(text, 0).length, text.size());
    ASSERT_EQ(code_point_at(text, 0), code_point);
  }
}

TEST(ByteAlphabet, SpellsEveryByteOnce) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string token;
    append_utf8(token, byte_level_character(static_cast<std::uint8_t>(byte)));

    ASSERT_EQ(byte_level_bytes(token), std::string(1, static_cast<char>(static_cast<unsigned char>(byte))));
  }
}

TEST(ByteAlphabet, IsGpt2s) {
  EXPECT_EQ(byte_level_character(' '), U'\u0120');
  EXPECT_EQ(byte_level_character('\n'), U'\u010a');
  EXPECT_EQ(byte_level_character(0xad), U'\u0143');
  EXPECT_EQ(byte_level_character(0x7f), U'\u0121');
  EXPECT_EQ(byte_level_character('A'), U'A');
  EXPECT_EQ(byte_level_bytes("a b"), std::nullopt);  // a blank is spelled differently
  EXPECT_EQ(byte_level_bytes("\u4e2d"), std::nullopt);
  EXPECT_EQ(byte_level_bytes("\u00ad"), std::nullopt);
}

TEST(VocabularyTest, RefusesWhatIsNotOneToOne) {
  Vocabulary vocabulary;
  vocabulary.add("a", 3);

  EXPECT_THAT(error_of([&] { vocabulary.add("b", 3); }).message(), HasSubstr("\"a\" and \"b\" both have the id 3"));
  EXPECT_THAT(error_of([&] { vocabulary.add("a", 4); }).message(), HasSubstr("\"a\" has two ids, 3 and 4"));
  EXPECT_THAT(error_of([&] { vocabulary.add("c", -1); }).message(), HasSubstr("ids start at 0"));
  EXPECT_EQ(vocabulary.id_bound(), 4);
  EXPECT_EQ(vocabulary.size(), 1);
}

/// The definition: as long as a neighbouring pair has a merge, carry out the one of lowest rank, leftmost first.
std::vector<std::int32_t> merged_naively(std::vector<std::int32_t> symbols, const std::vector<Merge>& merges) {
  while (true) {
    std::size_t best_rank = merges.size();
    std::size_t best_position = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (std::size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == symbols[i] && merges[rank].right == symbols[i + 1]) {
          best_rank = rank;
          best_position = i;
        }
      }
    }
    if (best_rank == merges.size()) {
      return symbols;
    }
    symbols[best_position] = merges[best_rank].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_position) + 1);
  }
}

TEST(MergeTable, GivesWhatTheDefinitionGives) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Merge> merges;
    for (std::int32_t result = 3; result < 3 + round % 17; ++result) {
      const auto symbol = [&] { return static_cast<std::int32_t>(random() % static_cast<unsigned>(result)); };
      merges.push_back({symbol(), symbol(), result});
    }
    // A pair has one merge; of several the last would count.
    std::vector<Merge> distinct;
    for (const auto& merge : merges) {
      if (std::none_of(distinct.begin(), distinct.end(),
                       [&](const Merge& other) { return other.left == merge.left && other.right == merge.right; })) {
        distinct.push_back(merge);
      }
    }
    std::shuffle(distinct.begin(), distinct.end(), random);
    std::vector<std::int32_t> symbols(random() % 60);
    for (auto& symbol : symbols) {
      symbol = static_cast<std::int32_t>(random() % 3);
    }
    const auto expected = merged_naively(symbols, distinct);
    MergeTable::Scratch scratch;

    MergeTable(distinct).merge(symbols, scratch);

    ASSERT_EQ(symbols, expected) << "round " << round;
  }
}

TEST(MergeTable, LaterOfTwoMergesOfAPairCounts) {
  std::vector<std::int32_t> symbols{0, 1};
  MergeTable::Scratch scratch;

  MergeTable({{0, 1, 5}, {0, 1, 6}}).merge(symbols, scratch);

  EXPECT_THAT(symbols, ElementsAre(6));
}

TEST(MergeTable, LeavesShortAndUnknownAlone) {
  MergeTable::Scratch scratch;
  std::vector<std::int32_t> none;
  std::vector<std::int32_t> one{4};
  std::vector<std::int32_t> strange{std::numeric_limits<std::int32_t>::max(), 4, 0};
  const MergeTable table(std::vector<Merge>{{0, 4, 5}});

  table.merge(none, scratch);
  table.merge(one, scratch);
  table.merge(strange, scratch);
  MergeTable().merge(strange, scratch);

  EXPECT_THAT(none, ElementsAre());
  EXPECT_THAT(one, ElementsAre(4));
  EXPECT_THAT(strange, ElementsAre(std::numeric_limits<std::int32_t>::max(), 4, 0));
}

TEST(MergeTable, TakesOutdatedCandidatesWhereLengthsAreNotFixed) {
  // (0, 1) and (5, 2) both give 9. Where 5 stands for a longer text, the candidate of the first pair counts for the
  // second.
  const std::vector<Merge> merges{{0, 1, 9}, {5, 2, 9}};
  std::vector<std::int32_t> symbols{0, 1, 5, 2};
  MergeTable::Scratch scratch;

  MergeTable(merges, false).merge(symbols, scratch);

  EXPECT_THAT(symbols, ElementsAre(9, 9));
}

TEST(Joints, AreThePairsInsideTokens) {
  Joints joints;
  for (const auto* token : {"", "a", "abc", "\u2581the", "\u00e9\U0001f600"}) {
    joints.add(token);
  }

  EXPECT_TRUE(joints.contains('a', 'b') && joints.contains('b', 'c') && joints.contains(U'\u2581', 't'));
  EXPECT_TRUE(joints.contains(U'\u00e9', U'\U0001f600'));
  EXPECT_FALSE(joints.contains('b', 'a') || joints.contains('e', U'\u2581') || joints.contains('a', 'c'));
}

TEST(WordCache, KnowsWordsUntilOthersTakeTheirPlace) {
  WordCache cache;
  const std::vector<std::int32_t> ids{1, 2, 3};
  const std::vector<std::int32_t> many(WordCache::most_ids + 1);
  const auto place = cache.place("word");

  EXPECT_FALSE(cache.find(place, "word"));
  cache.store(place, "word", ids);
  EXPECT_THAT(std::vector(cache.find(place, "word")->begin(), cache.find(place, "word")->end()), ElementsAre(1, 2, 3));
  EXPECT_FALSE(cache.find(place, "wore"));
  cache.store(place, "other", many);
  EXPECT_TRUE(cache.find(place, "word"));
  cache.store(place, std::string(WordCache::longest_word, 'x'), {});
  EXPECT_FALSE(cache.find(place, "word"));
  EXPECT_TRUE(cache.find(place, std::string(WordCache::longest_word, 'x'))->empty());
}

TEST(Protobuf, GivesFieldsInOrder) {
  const std::string message("\x08\x96\x01\x12\x02hi\x1d\x01\x02\x03\x04\x21\x01\x02\x03\x04\x05\x06\x07\x08", 21);
  std::vector<std::string> fields;

  for_each_field(message, "message", [&](const ProtobufField& field) {
    fields.push_back(fmt::format("{} {} {}", field.number, field.value, field.bytes));
  });

  EXPECT_THAT(fields, ElementsAre("1 150 ", "2 0 hi", "3 0 ", "4 0 "));
}

TEST(Protobuf, RefusesCutMessages) {
  for (const auto& message : {std::string("\x08"), std::string("\x12\x05hi"), std::string("\x1d\x01"),
                              std::string("\x0b"), std::string("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
                              std::string("\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f")}) {
    const auto error = error_of([&] { for_each_field(message, "the file", [](const ProtobufField&) {}); });

    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.message(), HasSubstr("the file is damaged"));
  }
}

TEST(UnicodeTables, KnowWhatIsNewer) {
  EXPECT_TRUE(is_newer_than_normalization(U'\u32ff'));
  EXPECT_TRUE(is_newer_than_normalization(U'\u0897'));
  EXPECT_FALSE(is_newer_than_normalization(U'\u0301'));
  EXPECT_FALSE(is_newer_than_normalization(U'a'));
  EXPECT_FALSE(is_newer_than_normalization(U'\U0010ffff'));
}

}  // namespace
}  // namespace gptqd::io
