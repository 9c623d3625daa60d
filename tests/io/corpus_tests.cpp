#include <gmock/gmock.h>

#include <numeric>

#include "io/corpus.hpp"
#include "tests/io/file_support.hpp"

namespace gptqd::io {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::int32_t> counting(int count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(TokenWindows, HashIsThatOfShapeAndIds) {
  const TokenWindows windows{2, 3, {1, 2, 3, 4, 5, 6}};

  const auto hash = windows.hash();

  // xxhsum -H2 of python's struct.pack("<qq6i", 2, 3, 1, 2, 3, 4, 5, 6)
  EXPECT_EQ(hash, "72448cb1f0223e6474520bb09b42d260");
  EXPECT_NE((TokenWindows{3, 2, {1, 2, 3, 4, 5, 6}}).hash(), hash);
  EXPECT_NE((TokenWindows{2, 3, {1, 2, 3, 4, 5, 7}}).hash(), hash);
}

TEST(DrawWindows, StartWherePythonSays) {
  const auto tokens = counting(1000);

  const auto windows = draw_windows(tokens, 4, 16, /*seed=*/0);

  // random.seed(0); [random.randint(0, 1000 - 16 - 1) for _ in range(4)]
  EXPECT_EQ(windows.samples, 4);
  EXPECT_EQ(windows.seqlen, 16);
  ASSERT_EQ(windows.ids.size(), 64u);
  EXPECT_THAT((std::vector{windows.ids[0], windows.ids[16], windows.ids[32], windows.ids[48]}),
              ElementsAre(864, 394, 776, 911));
  EXPECT_EQ(windows.ids[15], 864 + 15);
}

TEST(DrawWindows, NeedOneTokenMoreThanAWindow) {
  const auto tokens = counting(17);

  const auto windows = draw_windows(tokens, 3, 16, 0);
  const auto error = error_of([&] { draw_windows(tokens, 1, 17, 0, "calibration text a.txt"); });

  EXPECT_THAT(windows.ids, testing::Each(testing::Lt(16)));  // the last window is never drawn
  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(),
              HasSubstr("calibration text a.txt has 17 tokens, fewer than one sample of 17 needs (18); "
                        "give a longer text or a smaller --seqlen"));
}

TEST(DrawWindows, RefuseImpossibleCounts) {
  const auto tokens = counting(10);

  for (const auto& [samples, seqlen] : {std::pair{0, 4}, {4, 0}, {-1, 4}, {4, -1}, {INT32_MAX, INT32_MAX}}) {
    const auto error = error_of([&, samples = samples, seqlen = seqlen] { draw_windows(tokens, samples, seqlen, 0); });
    EXPECT_EQ(error.kind(), ErrorKind::usage) << samples << " of " << seqlen;
  }
}

TEST(SequentialWindows, DropTheRest) {
  const auto tokens = counting(11);

  const auto windows = sequential_windows(tokens, 4, 0);

  EXPECT_EQ(windows, (TokenWindows{2, 4, {0, 1, 2, 3, 4, 5, 6, 7}}));
}

TEST(SequentialWindows, StopAtTheMaximum) {
  const auto tokens = counting(11);

  EXPECT_EQ(sequential_windows(tokens, 4, 1), (TokenWindows{1, 4, {0, 1, 2, 3}}));
  EXPECT_EQ(sequential_windows(tokens, 4, 9).samples, 2);
}

TEST(SequentialWindows, RefuseShortTextsAndImpossibleCounts) {
  const auto tokens = counting(3);

  EXPECT_EQ(error_of([&] { sequential_windows(tokens, 4, 0); }).kind(), ErrorKind::input);
  EXPECT_EQ(error_of([&] { sequential_windows(tokens, 0, 0); }).kind(), ErrorKind::usage);
  EXPECT_EQ(error_of([&] { sequential_windows(tokens, 1, -1); }).kind(), ErrorKind::usage);
}

TEST(Take, GivesTheFirstTokensOfTheFirstSamples) {
  const TokenWindows windows{3, 3, {0, 1, 2, 3, 4, 5, 6, 7, 8}};

  EXPECT_EQ(take(windows, 2, 2), (TokenWindows{2, 2, {0, 1, 3, 4}}));
  EXPECT_EQ(take(windows, 3, 3), windows);
}

TEST(Take, RefusesMoreThanThereIs) {
  const TokenWindows windows{3, 3, {0, 1, 2, 3, 4, 5, 6, 7, 8}};

  const auto samples = error_of([&] { take(windows, 4, 1, "calibration file t.safetensors"); });
  const auto seqlen = error_of([&] { take(windows, 1, 4); });

  EXPECT_EQ(samples.kind(), ErrorKind::input);
  EXPECT_THAT(samples.message(),
              HasSubstr("calibration file t.safetensors holds 3 samples of 3 tokens, asked for 4 of 1"));
  EXPECT_EQ(seqlen.kind(), ErrorKind::input);
  EXPECT_EQ(error_of([&] { take(windows, 0, 1); }).kind(), ErrorKind::usage);
}

TEST(CheckVocabulary, NamesTheFirstIdOutside) {
  const TokenWindows windows{2, 3, {0, 1, 9, 3, 10, 11}};

  EXPECT_NO_THROW(check_vocabulary(windows, 12, "t"));
  const auto error = error_of([&] { check_vocabulary(windows, 10, "calibration file t.safetensors"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("calibration file t.safetensors: sample 1, position 1 has the token id 10"));
  EXPECT_EQ(error_of([&] { check_vocabulary({1, 1, {-1}}, 10, "t"); }).kind(), ErrorKind::input);
}

}  // namespace
}  // namespace gptqd::io
