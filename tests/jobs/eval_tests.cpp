/// @file The command eval: several models and texts in one run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "io/corpus/sampling.hpp"
#include "io/safetensors.hpp"
#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path eval_text() { return source_path("jobs/demo/eval.txt"); }

/// Runs eval with these words and small windows; its JSON.
nlohmann::json evaluate(int ranks, const Words& words, const CommandOptions& options = {}) {
  const TemporaryFolder folder;
  Words all{"eval", "--seqlen", "64", "--windows", "5", "--micro-batch-tokens", "128", "--json", folder / "eval.json"};
  all.insert(all.end(), words.begin(), words.end());
  const auto result = gptq_dist(ranks, all, options);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? nlohmann::json::parse(read_text(folder / "eval.json")) : nlohmann::json();
}

/// The losses of all windows, by model and text.
nlohmann::json losses_of(const nlohmann::json& results) {
  nlohmann::json losses;
  for (const auto& model : results.at("models")) {
    for (const auto& text : model.at("texts")) {
      losses.push_back(text.at("window_nll"));
    }
  }
  return losses;
}

/// A rounded demo model.
void round_demo_model(const fs::path& out) {
  expect_success(1, Options{{"--model", demo_model()}, {"--method", "rtn"}, {"--bits", "3"}, {"--out", out}});
}

TEST(Eval, ComparesModelsOnTheSameWindows) {
  const TemporaryFolder folder;
  round_demo_model(folder / "rtn");
  fs::copy(demo_model(), folder / "copy");

  const auto results = evaluate(1, {"--model", demo_model(), "--compare", folder / "rtn", folder / "copy", "--text",
                                    eval_text(), source_path("jobs/demo/calib.txt")});

  const auto& models = results.at("models");
  ASSERT_EQ(models.size(), 3u);
  EXPECT_EQ(models[0].at("bits"), 16);
  EXPECT_EQ(models[1].at("bits"), 3);
  EXPECT_EQ(models[1].at("quantized"), true);
  EXPECT_GT(models[0].at("weight_bytes"), models[1].at("weight_bytes"));
  for (std::size_t text = 0; text < 2; ++text) {
    const auto& first = models[0].at("texts")[text];
    const auto& rounded = models[1].at("texts")[text];
    EXPECT_EQ(first.at("window_nll").size(), 5u);
    EXPECT_FALSE(first.contains("difference"));
    EXPECT_EQ(rounded.at("hash"), first.at("hash"));
    const double difference = rounded.at("difference").at("nll");
    EXPECT_NEAR(difference, rounded.at("nll").get<double>() - first.at("nll").get<double>(), 1e-12);
    EXPECT_GT(difference, 0.02);
    EXPECT_GT(rounded.at("difference").at("half_width_95").get<double>(), 0);
    EXPECT_EQ(models[2].at("texts")[text].at("difference"), nlohmann::json({{"nll", 0.0}, {"half_width_95", 0.0}}));
  }
  EXPECT_EQ(results.at("perplexity"), models[0].at("texts")[0].at("perplexity"));
  EXPECT_DOUBLE_EQ(results.at("perplexity").get<double>(), std::exp(results.at("nll").get<double>()));
}

TEST(Eval, GivesTheSameLossesHoweverTheWindowsAreSplit) {
  const TemporaryFolder folder;
  round_demo_model(folder / "rtn");
  const Words words{
      "--model", demo_model(), "--compare", folder / "rtn", "--text", eval_text(), source_path("jobs/demo/calib.txt")};
  auto little_memory = words;
  little_memory.insert(little_memory.end(), {"--hidden-memory", "1e-6"});

  const auto expected = losses_of(evaluate(1, words));

  EXPECT_EQ(losses_of(evaluate(2, words)), expected);
  EXPECT_EQ(losses_of(evaluate(3, little_memory)), expected);
  EXPECT_EQ(losses_of(evaluate(1, {"--model", demo_model(), "--text", eval_text()}))[0], expected[0]);
}

TEST(Eval, WritesTheLogitsThatItsLossesAreOf) {
  const TemporaryFolder folder;
  const Words model{"--model", demo_model(), "--text", eval_text(), "--logits"};
  const auto with_logits = [&](int ranks, const std::string& file) {
    auto words = model;
    words.push_back(file);
    return evaluate(ranks, words);
  };

  const auto results = with_logits(1, folder / "logits.safetensors");
  with_logits(2, folder / "of-two-ranks.safetensors");

  EXPECT_TRUE(read_text(folder / "of-two-ranks.safetensors") == read_text(folder / "logits.safetensors"));
  const io::SafetensorsFile file(folder / "logits.safetensors");
  const auto& logits_info = file.at("logits");
  ASSERT_EQ(logits_info.shape, (std::vector<std::int64_t>{5, 64, 8192}));
  ASSERT_EQ(logits_info.dtype, DType::f32);
  ASSERT_EQ(file.at("input_ids").shape, (std::vector<std::int64_t>{5, 64}));
  std::vector<float> logits(5 * 64 * 8192);
  std::vector<std::int32_t> ids(5 * 64);
  file.read(logits_info, std::as_writable_bytes(std::span(logits)));
  file.read(file.at("input_ids"), std::as_writable_bytes(std::span(ids)));
  const auto& expected = results.at("models")[0].at("texts")[0].at("window_nll");
  for (std::size_t window = 0; window < 5; ++window) {
    double nll = 0;
    for (std::size_t t = 64 * window; t < 64 * window + 63; ++t) {
      const std::span row(logits.data() + 8192 * t, 8192);
      double sum = 0;
      for (const float logit : row) {
        sum += std::exp(static_cast<double>(logit));
      }
      nll += std::log(sum) - static_cast<double>(row[static_cast<std::size_t>(ids[t + 1])]);
    }
    EXPECT_NEAR(nll / 63, expected[window].get<double>(), 1e-5) << "window " << window;
  }
}

TEST(Eval, RefusesLogitsThatAreTooMany) {
  const TemporaryFolder folder;
  const std::string text = eval_text();
  const std::vector<std::pair<Words, std::string>> cases{
      {{"--text", text, "--compare", demo_model()}, "--logits takes one model and one text"},
      {{"--text", text, text}, "--logits takes one model and one text"},
      {{"--text", text, "--seqlen", "512", "--windows", "60"}, "vocabulary of 8192 are 1.0 GB, more than the 1 GB"},
  };
  for (const auto& [words, message] : cases) {
    Words all{"eval", "--model", demo_model(), "--logits", folder / "logits.safetensors"};
    all.insert(all.end(), words.begin(), words.end());

    const auto result = gptq_dist(1, all);

    EXPECT_EQ(result.code, 64) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_FALSE(fs::exists(folder / "logits.safetensors"));
  }
}

TEST(Eval, AppliesConventionsToFilesAndFindsTheirOwn) {
  const TemporaryFolder folder;
  write_text(folder / "wiki.test.raw", read_text(eval_text()).substr(0, 20'000));
  const auto tokenizer = io::Tokenizer::open(demo_model());
  const io::TextSource source{.file = folder / "wiki.test.raw", .convention = io::Convention::wikitext2};
  const auto expected = io::evaluation_text_windows(*tokenizer, source, 64, 5).hash();

  const auto by_name = evaluate(1, {"--model", demo_model(), "--convention", "wikitext2"},
                                {.folder = {}, .environment = {{"GPTQ_DIST_DATA", folder.path()}}});
  const auto by_path =
      evaluate(1, {"--model", demo_model(), "--text", folder / "wiki.test.raw", "--convention", "wikitext2"});

  EXPECT_EQ(by_name.at("models")[0].at("texts")[0].at("hash"), expected);
  EXPECT_EQ(by_path.at("models")[0].at("texts")[0].at("hash"), expected);
}

TEST(Eval, PrintsATableOfSeveralModels) {
  const auto result = gptq_dist(1, Words{"eval", "--seqlen", "64", "--windows", "2", "--model", demo_model(),
                                         "--compare", demo_model(), "--text", eval_text()});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("eval.txt: 2 windows of 64 tokens\nmodel "));
  EXPECT_THAT(result.out, HasSubstr("\nopt-7m    16    14.73 MB "));
  EXPECT_THAT(result.out, HasSubstr("+0.0000 ± 0.0000\n"));
}

TEST(Eval, RefusesToCompareModelsOfDifferentTokenizers) {
  const TemporaryFolder folder;
  fs::copy(demo_model(), folder / "other");
  auto tokenizer = nlohmann::json::parse(read_text(folder / "other/tokenizer.json"));
  auto& merges = tokenizer.at("model").at("merges");
  merges.erase(merges.begin() + 100, merges.end());
  write_text(folder / "other/tokenizer.json", tokenizer.dump());

  for (const int ranks : {1, 2}) {
    const auto result = gptq_dist(ranks, Words{"eval", "--model", demo_model(), "--compare", folder / "other", "--text",
                                               eval_text(), "--seqlen", "64", "--windows", "2"});

    EXPECT_EQ(result.code, 65);
    EXPECT_THAT(result.err, HasSubstr("have different tokenizers"));
  }
}

TEST(Eval, RefusesWhatMakesNoSense) {
  const std::string text = eval_text();
  const std::vector<std::pair<Words, std::string>> cases{
      {{"--convention", "wikitext3", "--text", text}, "there is no convention \"wikitext3\""},
      {{"--convention", "plain"}, "--text is missing"},
      {{"--convention", "ptb", "--text", "c4"}, "--convention ptb does not apply to --text c4"},
      {{"--convention", "ptb", "--text", calibration_tokens()}, "which is a token file"},
      {{"--hidden-memory", "0", "--text", text}, "--hidden-memory must be positive"},
  };
  for (const auto& [words, message] : cases) {
    Words all{"eval", "--model", demo_model()};
    all.insert(all.end(), words.begin(), words.end());

    const auto result = gptq_dist(1, all);

    EXPECT_EQ(result.code, 64) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
  }
}

}  // namespace
}  // namespace gptqd::jobs::test
