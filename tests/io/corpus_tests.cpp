#include <gmock/gmock.h>

#include <cstring>
#include <numeric>
#include <ostream>

#include "io/corpus.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;
using test::write_text;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::int32_t> counting(int count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

template <class T>
std::string token_file(std::string_view dtype, std::string_view shape, const std::vector<T>& ids,
                       std::string_view name = "input_ids") {
  const auto bytes = ids.size() * sizeof(T);
  auto text = test::safetensors_text(
      fmt::format(R"({{"{}":{{"dtype":"{}","shape":{},"data_offsets":[0,{}]}}}})", name, dtype, shape, bytes), bytes);
  if (!ids.empty()) {
    std::memcpy(text.data() + (text.size() - bytes), ids.data(), bytes);
  }
  return text;
}

TEST(TokenWindows, HashIsThatOfShapeAndIds) {
  const TokenWindows windows{2, 3, {1, 2, 3, 4, 5, 6}};

  const auto hash = windows.hash();

  // xxhsum -H2 of python's struct.pack("<qq6i", 2, 3, 1, 2, 3, 4, 5, 6)
  EXPECT_EQ(hash, "72448cb1f0223e6474520bb09b42d260");
  EXPECT_NE((TokenWindows{3, 2, {1, 2, 3, 4, 5, 6}}).hash(), hash);
  EXPECT_NE((TokenWindows{2, 3, {1, 2, 3, 4, 5, 7}}).hash(), hash);
}

TEST(TokenFile, IsKnownByItsEnding) {
  EXPECT_TRUE(is_token_file("a/b.safetensors"));
  EXPECT_FALSE(is_token_file("a/b.txt"));
  EXPECT_FALSE(is_token_file("a.safetensors/b"));
  EXPECT_FALSE(is_token_file("safetensors"));
}

TEST(TokenFile, ReadsI32) {
  const auto windows = read_token_file(source_path("tests/golden/gptq/calib_tokens.safetensors"));

  EXPECT_EQ(windows.samples, 128);
  EXPECT_EQ(windows.seqlen, 512);
  EXPECT_EQ(windows.ids.size(), 128u * 512);
}

TEST(TokenFile, ReadsI64) {
  const TemporaryFolder folder;
  write_text(folder / "t.safetensors", token_file<std::int64_t>("I64", "[2,3]", {1, 2, 3, 4, 5, 2147483647}));

  const auto windows = read_token_file(folder / "t.safetensors");

  EXPECT_EQ(windows, (TokenWindows{2, 3, {1, 2, 3, 4, 5, 2147483647}}));
}

struct BadTokenFile {
  const char* name;
  std::string content;
  std::string message;

  friend void PrintTo(const BadTokenFile& file, std::ostream* out) { *out << file.name; }
};
class TokenFileRefusal : public testing::TestWithParam<BadTokenFile> {};

TEST_P(TokenFileRefusal, SaysWhy) {
  const TemporaryFolder folder;
  write_text(folder / "t.safetensors", GetParam().content);

  const auto error = error_of([&] { read_token_file(folder / "t.safetensors"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    , TokenFileRefusal,
    testing::Values(
        BadTokenFile{"Stream", token_file<std::int32_t>("I32", "[3]", {1, 2, 3}), "cut the stream into samples"},
        BadTokenFile{"Cube", token_file<std::int32_t>("I32", "[1,1,3]", {1, 2, 3}), "input_ids is I32 [1, 1, 3]"},
        BadTokenFile{"NoSamples", token_file<std::int32_t>("I32", "[0,3]", {}), "[0, 3], expected I32 or I64"},
        BadTokenFile{"Floats", token_file<float>("F32", "[1,3]", {1, 2, 3}), "input_ids is F32 [1, 3]"},
        BadTokenFile{"OtherName", token_file<std::int32_t>("I32", "[1,3]", {1, 2, 3}, "tokens"), "it has tokens"},
        BadTokenFile{"NegativeId", token_file<std::int32_t>("I32", "[2,2]", {1, 2, -3, 4}), "input_ids[1, 0] is -3"},
        BadTokenFile{"HugeId", token_file<std::int64_t>("I64", "[1,2]", {1, std::int64_t{1} << 31}),
                     "input_ids[0, 1] is 2147483648"},
        BadTokenFile{"NoTensorFile", "not a tensor file", "t.safetensors"}));

TEST(TextFile, IsReadAsItIs) {
  const TemporaryFolder folder;
  const std::string text("a\r\n\0\xff b\n", 8);
  write_text(folder / "t.txt", text);

  EXPECT_EQ(read_text_file(folder / "t.txt"), text);
}

TEST(TextFile, RefusesMissingEmptyAndFolders) {
  const TemporaryFolder folder;
  write_text(folder / "empty.txt", "");

  for (const auto& path : {folder / "none.txt", folder / "empty.txt", folder.path()}) {
    const auto error = error_of([&] { read_text_file(path); });
    EXPECT_EQ(error.kind(), ErrorKind::input) << path;
    EXPECT_THAT(error.message(), HasSubstr(path.string()));
  }
}

TEST(TextTokens, AreThoseOfTheWholeTextWithSpecialTokensOnce) {
  const TemporaryFolder folder;
  write_text(folder / "t.txt", "hello\n\nhello");
  const auto tokenizer = Tokenizer::open(source_path("tests/golden/tokenizers/gpt2-style"));

  const auto plain = read_text_tokens(*tokenizer, folder / "t.txt", SpecialTokens::none);
  const auto special = read_text_tokens(*tokenizer, folder / "t.txt", SpecialTokens::add);

  EXPECT_EQ(plain, tokenizer->encode("hello\n\nhello", SpecialTokens::none));
  ASSERT_EQ(special.size(), plain.size() + 1);
  EXPECT_EQ(special.front(), 2);
}

// The file's windows were made by Hugging Face tokenizers: window i starts at floor(i (N - 512) / 127).
TEST(TextTokens, OfTheDemoAreThoseOfTheGoldenTokenFile) {
  const auto tokenizer = Tokenizer::open(source_path("jobs/demo/opt-7m"));
  const auto golden = read_token_file(source_path("tests/golden/gptq/calib_tokens.safetensors"));

  const auto tokens = read_text_tokens(*tokenizer, source_path("jobs/demo/calib.txt"), SpecialTokens::none);

  ASSERT_EQ(tokens.size(), 651'838u);
  for (std::size_t i = 0; i < 128; ++i) {
    const auto got = std::span(tokens).subspan(i * (tokens.size() - 512) / 127, 512);
    const auto expected = golden.window(static_cast<std::int64_t>(i));
    ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "window " << i;
  }
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
