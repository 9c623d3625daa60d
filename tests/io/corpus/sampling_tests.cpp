#include <gmock/gmock.h>

#include <sstream>

#include "io/corpus/sampling.hpp"
#include "io/corpus/token_file.hpp"
#include "tests/io/corpus/gzip_support.hpp"
#include "tests/io/environment.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;
using test::gzip;
using test::write_text;
using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

/// Each word is a number and the number is the id; the special token, in front, is 0.
class NumberTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const override {
    std::vector<std::int32_t> ids;
    if (special == SpecialTokens::add) {
      ids.push_back(0);
    }
    std::istringstream words{std::string(text)};
    for (std::int32_t id = 0; words >> id;) {
      ids.push_back(id);
    }
    ++texts;
    return ids;
  }
  std::string decode(std::span<const std::int32_t>, bool) const override { return {}; }
  std::string token(std::int32_t) const override { return {}; }
  std::int64_t vocab_size() const override { return 1'000'000; }

  mutable int texts = 0;  ///< encoded so far
};

/// "1001 1002 ... ": `count` words of document 1.
std::string document(int number, int count) {
  std::string text;
  for (int i = 1; i <= count; ++i) {
    text += fmt::format("{} ", 1000 * number + i);
  }
  return text;
}

/// Documents of these numbers of words, as JSON lines.
std::string json_lines(const std::vector<int>& counts) {
  std::string text;
  for (int i = 0; i < static_cast<int>(counts.size()); ++i) {
    text += fmt::format("{{\"text\": \"{}\"}}\n", document(i, counts[static_cast<std::size_t>(i)]));
  }
  return text;
}

std::vector<std::int32_t> first_ids(const TokenWindows& windows) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < windows.samples; ++i) {
    ids.push_back(windows.window(i).front());
  }
  return ids;
}

class CalibrationText : public testing::Test {
 protected:
  TextSource file(const std::string& name, const std::string& content) const {
    write_text(folder_ / name, content);
    return {.file = folder_ / name};
  }

  TemporaryFolder folder_;
  test::Environment environment_{"GPTQ_DIST_DATA"};
  NumberTokenizer tokenizer_;
};
using EvaluationText = CalibrationText;

const std::vector<int> lengths{5, 40, 16, 17, 3, 100, 60};

// random.seed(seed); 8 times: while True: i = random.randint(0, 6); break if length[i] + 1 > 16 (the special token);
// j = random.randint(0, length[i] + 1 - 16 - 1)
TEST_F(CalibrationText, OfSeparateDocumentsIsCroppedAsThePublishedCodeCropsC4) {
  const auto source = file("a.jsonl", json_lines(lengths));

  const auto seed_0 = calibration_text_windows(
      tokenizer_, source, {.samples = 8, .seqlen = 16, .seed = 0, .documents = Documents::separate});
  const auto seed_7 = calibration_text_windows(
      tokenizer_, source, {.samples = 8, .seqlen = 16, .seed = 7, .documents = Documents::separate});

  EXPECT_THAT(first_ids(seed_0), ElementsAre(6024, 6026, 0, 3001, 3001, 1016, 1009, 1024));
  EXPECT_THAT(first_ids(seed_7), ElementsAre(0, 0, 6034, 0, 1001, 3001, 1002, 0));
  EXPECT_EQ(seed_0.window(0)[15], 6024 + 15);
  EXPECT_EQ(seed_0.window(2)[1], 2001);
}

TEST_F(CalibrationText, OfC4ByNameIsCroppedByDefault) {
  environment_.set("GPTQ_DIST_DATA", folder_.path().string());
  write_text(folder_ / "c4-train.00000-of-01024.json.gz", gzip(json_lines(lengths)));

  const auto windows = calibration_text_windows(tokenizer_, TextSource::from_word("c4"), {.samples = 8, .seqlen = 16});

  EXPECT_THAT(first_ids(windows), ElementsAre(6024, 6026, 0, 3001, 3001, 1016, 1009, 1024));
}

TEST_F(CalibrationText, NeedsADocumentLongerThanAWindow) {
  const SamplingRequest request{.samples = 2, .seqlen = 16, .documents = Documents::separate};

  const auto error = error_of([&] {
    calibration_text_windows(tokenizer_, file("a.jsonl", json_lines({15, 3, 15})), request);
  });

  EXPECT_EQ(error.kind(), ErrorKind::input);  // 15 words and the special token are 16: a window, and none to spare
  EXPECT_THAT(error.message(), HasSubstr("a.jsonl: none of its 3 documents has more than 16 tokens"));
  EXPECT_EQ(tokenizer_.texts, 3);
}

TEST_F(CalibrationText, PacksDocumentsIntoOneStream) {
  const auto source = file("a.jsonl.gz", gzip(json_lines({3, 2, 4})));

  const auto windows =
      calibration_text_windows(tokenizer_, source, {.samples = 3, .seqlen = 4, .sampling = Sampling::sequential});

  EXPECT_THAT(windows.ids, ElementsAre(0, 1, 2, 3, 0, 1001, 1002, 0, 2001, 2002, 2003, 2004));
}

TEST_F(CalibrationText, DrawsFromTheStreamOfPackedDocuments) {
  const std::vector<std::int32_t> stream{0, 1, 2, 3, 0, 1001, 1002, 0, 2001, 2002, 2003, 2004};

  const auto windows =
      calibration_text_windows(tokenizer_, file("a.jsonl", json_lines({3, 2, 4})), {.samples = 9, .seqlen = 4});

  EXPECT_EQ(windows, draw_windows(stream, 9, 4, 0));
}

TEST_F(CalibrationText, ReadsNoFurtherThanItHasTo) {
  const auto source = file("a.jsonl", json_lines({3, 2, 4}) + "no JSON\n");
  const SamplingRequest packed{.samples = 2, .seqlen = 5, .sampling = Sampling::sequential};
  const SamplingRequest separate{
      .samples = 2, .seqlen = 4, .sampling = Sampling::sequential, .documents = Documents::separate};

  EXPECT_NO_THROW(calibration_text_windows(tokenizer_, source, packed));
  EXPECT_NO_THROW(calibration_text_windows(tokenizer_, source, separate));
  EXPECT_THAT(error_of([&] {
                auto all = packed;
                all.samples = 3;
                calibration_text_windows(tokenizer_, source, all);
              }).message(),
              HasSubstr("a.jsonl, line 4"));
}

TEST_F(CalibrationText, TakesEveryWindowOfSeparateDocumentsInOrder) {
  const auto windows = calibration_text_windows(
      tokenizer_, file("a.jsonl", json_lines({2, 8, 3})),
      {.samples = 4, .seqlen = 3, .sampling = Sampling::sequential, .documents = Documents::separate});

  EXPECT_THAT(windows.ids, ElementsAre(0, 1, 2, 0, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008));
}

TEST_F(CalibrationText, SaysWhenItHasTooFewWindows) {
  const auto source = file("a.jsonl", json_lines({2, 8, 3}));

  for (const auto documents : {Documents::packed, Documents::separate}) {
    const auto error = error_of([&] {
      calibration_text_windows(tokenizer_, source,
                               {.samples = 6, .seqlen = 3, .sampling = Sampling::sequential, .documents = documents});
    });
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.message(), HasSubstr("windows of 3 tokens without overlap, asked for 6"));
  }
}

TEST_F(CalibrationText, JoinsRowsOfDataSetsAsThePublishedCodeDoes) {
  environment_.set("GPTQ_DIST_DATA", folder_.path().string());
  write_text(folder_ / "wiki.train.raw", " \n = 11 = \n 12 13 \n");
  write_text(folder_ / "ptb.train.txt", " 21 22 \n 23 \n");
  std::vector<std::string> texts;
  class Recorder : public NumberTokenizer {
   public:
    explicit Recorder(std::vector<std::string>& texts) : texts_(texts) {}
    std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const override {
      EXPECT_EQ(special, SpecialTokens::add);
      texts_.emplace_back(text);
      return {1, 2, 3};
    }

   private:
    std::vector<std::string>& texts_;
  };
  const Recorder recorder(texts);

  for (const auto* name : {"wikitext2", "ptb", "ptb-new"}) {
    calibration_text_windows(recorder, TextSource::from_word(name), {.samples = 1, .seqlen = 2});
  }

  EXPECT_THAT(texts, ElementsAre("\n\n = 11 = \n\n\n 12 13 \n", "21 22\n\n23", "21 22 23"));
}

TEST_F(CalibrationText, RefusesImpossibleCounts) {
  const auto source = file("a.txt", "1 2 3");

  EXPECT_EQ(error_of([&] { calibration_text_windows(tokenizer_, source, {.samples = 0, .seqlen = 1}); }).kind(),
            ErrorKind::usage);
  EXPECT_EQ(error_of([&] { calibration_text_windows(tokenizer_, source, {.samples = 1, .seqlen = 0}); }).kind(),
            ErrorKind::usage);
  EXPECT_EQ(error_of([&] { evaluation_text_windows(tokenizer_, source, 0, 1); }).kind(), ErrorKind::usage);
}

// The file's windows were made by Hugging Face tokenizers: window i starts at floor(i (N - 512) / 127).
TEST_F(CalibrationText, OfTheDemoHasTheTokensOfTheGoldenTokenFile) {
  const auto tokenizer = Tokenizer::open(source_path("jobs/demo/opt-7m"));
  const auto golden = read_token_file(source_path("tests/golden/gptq/calib_tokens.safetensors"));

  const auto all = evaluation_text_windows(*tokenizer, {.file = source_path("jobs/demo/calib.txt")}, 651'838, 0);

  ASSERT_EQ(all.ids.size(), 651'838u);
  for (std::size_t i = 0; i < 128; ++i) {
    const auto got = std::span(all.ids).subspan(i * (all.ids.size() - 512) / 127, 512);
    const auto expected = golden.window(static_cast<std::int64_t>(i));
    ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "window " << i;
  }
}

TEST_F(EvaluationText, PlainHasNoSpecialTokens) {
  const auto source = file("a.jsonl", json_lines({3, 2, 4}));

  EXPECT_THAT(evaluation_text_windows(tokenizer_, source, 4, 0).ids,
              ElementsAre(1, 2, 3, 1001, 1002, 2001, 2002, 2003));
  EXPECT_EQ(evaluation_text_windows(tokenizer_, source, 4, 1).samples, 1);
}

TEST_F(EvaluationText, ByConventionHasThemOnce) {
  auto source = file("a.jsonl", json_lines({3, 2, 4}));
  source.convention = Convention::wikitext2;

  EXPECT_THAT(evaluation_text_windows(tokenizer_, source, 5, 0).ids,
              ElementsAre(0, 1, 2, 3, 1001, 1002, 2001, 2002, 2003, 2004));
}

TEST_F(EvaluationText, OfC4AreTwoHundredFiftySixCropsWithSeedZero) {
  auto source = file("a.jsonl", json_lines(lengths));
  source.convention = Convention::c4;

  const auto all = evaluation_text_windows(tokenizer_, source, 16, 0);
  const auto some = evaluation_text_windows(tokenizer_, source, 16, 8);

  EXPECT_EQ(all.samples, 256);
  EXPECT_THAT(first_ids(some), ElementsAre(6024, 6026, 0, 3001, 3001, 1016, 1009, 1024));
  EXPECT_TRUE(std::equal(some.ids.begin(), some.ids.end(), all.ids.begin()));
}

TEST_F(EvaluationText, OfC4NewIsTheFirstElevenHundredDocuments) {
  auto source = file("a.jsonl", json_lines(std::vector<int>(1101, 2)));
  source.convention = Convention::c4_new;

  const auto tokens = evaluation_text_windows(tokenizer_, source, 2201, 0);
  const auto windows = evaluation_text_windows(tokenizer_, source, 2, 0);

  EXPECT_EQ(tokens.ids.back(), 1'099'002);
  EXPECT_EQ(error_of([&] { evaluation_text_windows(tokenizer_, source, 2202, 0); }).kind(), ErrorKind::input);
  EXPECT_EQ(windows.samples, 256);
  EXPECT_THAT(std::span(windows.ids).first(5), ElementsAreArray({0, 1, 2, 1001, 1002}));
}

TEST(SamplingNames, AreThoseOfTheOptions) {
  EXPECT_EQ(sampling_from_name("sequential"), Sampling::sequential);
  EXPECT_EQ(documents_from_name("separate"), Documents::separate);
  EXPECT_THAT(error_of([] { sampling_from_name("all"); }).message(),
              HasSubstr("--sampling all: expected random or sequential"));
  EXPECT_THAT(error_of([] { documents_from_name("all"); }).message(),
              HasSubstr("--documents all: expected packed or separate"));
}

}  // namespace
}  // namespace gptqd::io
