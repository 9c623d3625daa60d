/// @file Calibration texts of every kind, up to the tokens that a run's fingerprint names.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/corpus/sampling.hpp"
#include "io/corpus/token_file.hpp"
#include "tests/io/corpus/gzip_support.hpp"
#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using io::test::gzip;
using ::testing::HasSubstr;

const fs::path& demo_text() {
  static const fs::path path = source_path("jobs/demo/calib.txt");
  return path;
}

/// Documents of some hundred words each from the demo's text, as JSON lines: one by `text`, one by `messages`, in turn.
std::string json_lines(int documents) {
  const auto text = read_text(demo_text());
  std::string lines;
  for (int i = 0; i < documents; ++i) {
    const auto piece = text.substr(static_cast<std::size_t>(3000 * i), 3000);
    const nlohmann::json document = i % 2 == 0 ? nlohmann::json{{"text", piece}}
                                               : nlohmann::json{{"messages", {{{"role", "user"}, {"content", piece}}}}};
    lines += document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  return lines;
}

/// A quick quantization with these words; the calibration part of its fingerprint.
nlohmann::json calibration_of(int ranks, const Words& words, const CommandOptions& command_options = {}) {
  const TemporaryFolder folder;
  Words all{"--model", demo_model(), "--out", folder / "out"};
  all.insert(all.end(), words.begin(), words.end());

  const auto result = gptq_dist(ranks, all, command_options);

  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? nlohmann::json::parse(read_text(work_of(folder / "out") / "run.json"))
                                .at("fingerprint")
                                .at("calibration")
                          : nlohmann::json();
}

TEST(Calibration, MixesTextsTokenFilesAndJsonLinesInEqualParts) {
  const TemporaryFolder folder;
  write_text(folder / "b.jsonl.gz", gzip(json_lines(8)));
  const auto tokenizer = io::Tokenizer::open(demo_model());
  const auto part = [&](const fs::path& file, std::int64_t samples) {
    return io::calibration_text_windows(*tokenizer, {.file = file}, {.samples = samples, .seqlen = 64, .seed = 5});
  };
  io::TokenWindows expected{.samples = 8, .seqlen = 64, .ids = {}};
  for (const auto& windows : {part(demo_text(), 3), part(folder / "b.jsonl.gz", 3),
                              io::take(io::read_token_file(calibration_tokens()), 2, 64)}) {
    expected.ids.insert(expected.ids.end(), windows.ids.begin(), windows.ids.end());
  }

  for (const int ranks : {1, 2}) {
    const auto got = calibration_of(ranks, {"--calibration", demo_text(), folder / "b.jsonl.gz", "--calibration",
                                            calibration_tokens(), "--samples", "8", "--seqlen", "64", "--seed", "5"});

    EXPECT_EQ(got.value("hash", ""), expected.hash()) << ranks;
    EXPECT_EQ(got.value("samples", 0), 8) << ranks;
  }
}

TEST(Calibration, FindsDataSetsByName) {
  const TemporaryFolder folder;
  write_text(folder / "c4-train.00000-of-01024.json.gz", gzip(json_lines(8)));
  const auto tokenizer = io::Tokenizer::open(demo_model());
  const auto expected = io::calibration_text_windows(
      *tokenizer, {.file = folder / "c4-train.00000-of-01024.json.gz"},
      {.samples = 8, .seqlen = 64, .sampling = io::Sampling::random, .documents = io::Documents::separate});

  const auto got = calibration_of(1, {"--calibration", "c4", "--samples", "8", "--seqlen", "64"},
                                  {.folder = {}, .environment = {{"GPTQ_DIST_DATA", folder.path()}}});

  EXPECT_EQ(got.value("hash", ""), expected.hash());
}

TEST(Calibration, TakesDocumentsFromTheBeginningWhereToldSo) {
  const TemporaryFolder folder;
  write_text(folder / "a.ndjson", json_lines(3));
  const auto tokenizer = io::Tokenizer::open(demo_model());
  const auto expected = io::calibration_text_windows(
      *tokenizer, {.file = folder / "a.ndjson"},
      {.samples = 8, .seqlen = 64, .sampling = io::Sampling::sequential, .documents = io::Documents::separate});

  const auto got = calibration_of(1, {"--calibration", folder / "a.ndjson", "--samples", "8", "--seqlen", "64",
                                      "--sampling", "sequential", "--documents", "separate"});

  EXPECT_EQ(got.value("hash", ""), expected.hash());
}

TEST(Calibration, EndsWithItsCodeAndAMessageWhereItIsWrong) {
  const TemporaryFolder folder;
  write_text(folder / "no_gzip.jsonl.gz", "{}");
  write_text(folder / "cut.jsonl.gz", gzip(json_lines(3)).substr(0, 2000));
  write_text(folder / "no_text.jsonl", "{\"text\": \"a\"}\n{\"title\": \"b\"}\n");
  write_text(folder / "short.jsonl", json_lines(1));
  constexpr int usage = 64;
  constexpr int input = 65;
  struct Case {
    Words words;
    int code;
    std::string message;
  };
  const std::vector<Case> cases{
      {{folder / "no_gzip.jsonl.gz"}, input, "does not begin as gzip does"},
      {{folder / "cut.jsonl.gz"}, input, "cut.jsonl.gz: cannot be decompressed"},
      {{folder / "no_text.jsonl"}, input, "no_text.jsonl, line 2: has neither \"text\" nor \"messages\""},
      {{folder / "short.jsonl", "--documents", "separate"}, input, "none of its 1 documents has more than 2048 tokens"},
      {{folder / "short.jsonl", "--sampling", "sequential", "--seqlen", "64"}, input, "without overlap, asked for 128"},
      {{demo_text(), demo_text(), "--samples", "1"}, usage, "--samples 1: fewer than the 2 calibration texts"},
      {{"wikitext2"}, input, "$GPTQ_DIST_DATA is not set"},
      {{demo_text(), "--sampling", "some"}, usage, "--sampling some: expected random or sequential"},
      {{demo_text(), "--documents", "some"}, usage, "--documents some: expected packed or separate"},
  };
  for (const auto& [words, code, message] : cases) {
    Words all{"--model", demo_model(), "--out", folder / "out", "--calibration"};
    all.insert(all.end(), words.begin(), words.end());

    const auto result = gptq_dist(1, all, {.folder = {}, .environment = {{"GPTQ_DIST_DATA", ""}}});

    EXPECT_EQ(result.code, code) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_FALSE(fs::exists(folder / "out"));
  }
}

}  // namespace
}  // namespace gptqd::jobs::test
