/// @file Losses and perplexities of the demo model against third-party code (tests/golden/gptq/opt-7m.json).
///
/// Chained results of GPTQ are chaotic in the last bits: the reference itself differs between CPUs by up to 0.35 % in
/// perplexity at 4 bits, 0.5 % at 3 and 3 % at 2, and by 0.34 % in the mean ratio of losses. The first block's q, k and
/// v see the float model and repeat well.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

/// A line of the reference's layers.
struct ReferenceLayer {
  std::string module;
  double rtn_loss = 0;
  double gptq_loss = 0;
  double weight_norm = 0;
  double trace = 0;
  std::int64_t dead_columns = 0;
};

ReferenceLayer parse_layer(const std::string& line) {
  ReferenceLayer layer;
  std::istringstream(line) >> layer.module >> layer.rtn_loss >> layer.gptq_loss >> layer.weight_norm >> layer.trace >>
      layer.dead_columns;
  return layer;
}

nlohmann::json reference_results() {
  return nlohmann::json::parse(read_text(source_path("tests/golden/gptq/opt-7m.json")));
}

/// Perplexity of eval.txt in windows of 512.
nlohmann::json evaluate(const std::filesystem::path& model, int windows) {
  const TemporaryFolder folder;
  const auto result =
      gptq_dist(2, Words{"eval", "--model", model, "--text", source_path("jobs/demo/eval.txt"), "--seqlen", "512",
                         "--windows", std::to_string(windows), "--json", folder / "eval.json"});
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? nlohmann::json::parse(read_text(folder / "eval.json")) : nlohmann::json();
}

/// Quantizes the demo model with all calibration tokens that the reference had.
void quantize(const std::filesystem::path& out, const Options& settings) {
  Options options{{"--model", demo_model()}, {"--calibration", calibration_tokens()}, {"--out", out}};
  options.insert(settings.begin(), settings.end());
  expect_success(2, options);
}

TEST(Quality, TheFloatModelsPerplexityIsTransformers) {
  const auto golden = nlohmann::json::parse(read_text(demo_model() / "golden.json"));

  const auto result = evaluate(demo_model(), 0);

  EXPECT_EQ(result.at("windows"), golden.at("eval_windows"));
  EXPECT_EQ(result.at("quantized"), false);
  const double expected = golden.at("eval_ppl_seqlen512_fp32compute");
  EXPECT_NEAR(result.at("perplexity").get<double>(), expected, 1e-4 * expected);
}

const std::vector<std::string> configurations{"w4-channel-asym",
                                              "w4-channel-sym",
                                              "w4-g128-sym",
                                              "w4-g128-asym",
                                              "w3-channel-asym",
                                              "w3-channel-sym",
                                              "w3-g128-sym",
                                              "w3-g128-asym",
                                              "w2-channel-asym",
                                              "w2-channel-sym",
                                              "w2-g128-sym",
                                              "w2-g128-asym",
                                              "w4-g128-sym-actorder-static",
                                              "w3-g128-sym-actorder-static",
                                              "w4-g32-sym",
                                              "w4-channel-asym-not-sequential"};

TEST(Quality, EveryConfigurationOfTheReferenceIsCompared) {
  std::vector<std::string> names;
  const auto reference = reference_results();
  for (const auto& [name, unused] : reference.at("configs").items()) {
    names.push_back(name);
  }

  EXPECT_THAT(configurations, ::testing::UnorderedElementsAreArray(names));
}

Options options_of(const nlohmann::json& settings) {
  Options options{{"--reference", ""}};
  options["--bits"] = std::to_string(settings.at("bits").get<int>());
  options["--group-size"] = std::to_string(settings.at("group_size").get<int>());
  options[settings.at("sym").get<bool>() ? "--sym" : "--asym"] = "";
  if (settings.at("act_order").get<bool>()) {
    options["--act-order"] = settings.at("static_groups").get<bool>() ? "static" : "dynamic";
  }
  if (!settings.at("true_sequential").get<bool>()) {
    options["--no-true-sequential"] = "";
  }
  return options;
}

class AgainstReference : public ::testing::TestWithParam<std::string> {};

TEST_P(AgainstReference, LossesAndPerplexityAreThoseOfThePublishedCode) {
  const auto reference = reference_results().at("configs").at(GetParam());
  const int bits = reference.at("bits");
  const double ratio_tolerance = bits == 4 ? 0.01 : bits == 3 ? 0.02 : 0.04;
  const double perplexity_tolerance = bits == 4 ? 0.005 : bits == 3 ? 0.016 : 0.05;
  const TemporaryFolder folder;

  quantize(folder / "out", options_of(reference));
  ASSERT_FALSE(HasFailure());

  std::map<std::string, nlohmann::json> layers;
  const auto report = report_of(folder / "out");
  for (const auto& layer : report.at("layers")) {
    layers[layer.at("name")] = layer;
  }
  ASSERT_EQ(layers.size(), reference.at("layers").size());
  double log_ratio = 0;
  double expected_log_ratio = 0;
  for (const auto& line : reference.at("layers")) {
    const auto expected = parse_layer(line);
    ASSERT_TRUE(layers.contains(expected.module));
    const auto& layer = layers.at(expected.module);
    const double norm = layer.at("weight_norm");
    const double loss = layer.at("loss").get<double>() * norm;
    const double rtn_loss = layer.at("rtn_loss").get<double>() * norm;
    if (expected.module.find("layers.0.self_attn") != std::string::npos &&
        expected.module.find("out_proj") == std::string::npos) {
      EXPECT_NEAR(norm, expected.weight_norm, 1e-4 * expected.weight_norm) << expected.module;
      EXPECT_NEAR(rtn_loss, expected.rtn_loss, 1e-3 * expected.rtn_loss) << expected.module;
      EXPECT_NEAR(loss, expected.gptq_loss, 1e-3 * expected.gptq_loss) << expected.module;
    }
    EXPECT_EQ(layer.at("dead_columns"), expected.dead_columns) << expected.module;
    EXPECT_EQ(layer.at("tokens"), 128 * 512);
    EXPECT_EQ(layer.at("retries"), 0);
    log_ratio += std::log(loss / rtn_loss) / static_cast<double>(layers.size());
    expected_log_ratio += std::log(expected.gptq_loss / expected.rtn_loss) / static_cast<double>(layers.size());
  }
  EXPECT_NEAR(std::exp(log_ratio), std::exp(expected_log_ratio), ratio_tolerance * std::exp(expected_log_ratio));
  EXPECT_NEAR(report.at("loss_ratio").get<double>(), std::exp(log_ratio), 1e-9);

  const auto result = evaluate(folder / "out", 128);
  const double expected = reference.at("ppl").at("gptq_ppl_128");
  EXPECT_EQ(result.at("quantized"), true);
  EXPECT_NEAR(result.at("perplexity").get<double>(), expected, perplexity_tolerance * expected);
}

INSTANTIATE_TEST_SUITE_P(All, AgainstReference, ::testing::ValuesIn(configurations), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

struct Defaults {
  int bits;
  std::string same_format;  ///< the reference's configuration of the same bits, groups and symmetry
};
void PrintTo(const Defaults& defaults, std::ostream* out) { *out << defaults.bits << " bits"; }

class OwnChoices : public ::testing::TestWithParam<Defaults> {};

TEST_P(OwnChoices, BeatThePublishedOnesInTheSameFormat) {
  const TemporaryFolder folder;

  quantize(folder / "out", {{"--bits", std::to_string(GetParam().bits)}});
  ASSERT_FALSE(HasFailure());

  const auto reference = reference_results().at("configs").at(GetParam().same_format).at("ppl");
  const double perplexity = evaluate(folder / "out", 128).at("perplexity");
  EXPECT_LT(perplexity, reference.at("gptq_ppl_128").get<double>());
  EXPECT_GT(perplexity, reference_results().at("float").at("ppl_128").get<double>());
}

INSTANTIATE_TEST_SUITE_P(All, OwnChoices,
                         ::testing::Values(Defaults{4, "w4-g128-sym"}, Defaults{3, "w3-g128-asym"},
                                           Defaults{2, "w2-g128-asym"}),
                         [](const auto& info) { return fmt::format("bits_{}", info.param.bits); });

}  // namespace
}  // namespace gptqd::jobs::test
