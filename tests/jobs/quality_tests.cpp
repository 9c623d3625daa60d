/// @file Perplexities of the demo models, and the losses of their first blocks against the published code's.
///
/// The first block's q, k and v see the float model, so their losses repeat well; what follows them is chaotic in the
/// last bits (reference_tests.cpp).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/reference_results.hpp"
#include "tests/support/host_model.hpp"

namespace gptqd::jobs::test {
namespace {

void expect_perplexity(const std::string& model, const nlohmann::json& result, double expected) {
  EXPECT_EQ(result.at("quantized"), false);
  EXPECT_NEAR(result.at("perplexity").get<double>(), expected, 1e-4 * expected) << model;
}

TEST(FloatModel, HasThePerplexityOfTransformersInEveryFamily) {
  for (const char* model : {"opt-7m", "bloom-7m", "llama-7m"}) {
    const auto golden =
        nlohmann::json::parse(read_text(source_path(fmt::format("tests/golden/gptq/{}.json", model)))).at("float");

    expect_perplexity(model, evaluate(demo_model(model), 128), golden.at("ppl_128"));
  }
}

class WholeText : public ::testing::TestWithParam<std::string> {};

TEST_P(WholeText, HasThePerplexityOfTransformers) {
  const auto golden = nlohmann::json::parse(read_text(demo_model(GetParam()) / "golden.json"));

  const auto result = evaluate(demo_model(GetParam()), 0);

  EXPECT_EQ(result.at("windows"), golden.at("eval_windows"));
  expect_perplexity(GetParam(), result, golden.at("eval_ppl_seqlen512_fp32compute"));
}

INSTANTIATE_TEST_SUITE_P(Other, WholeText, ::testing::Values("opt-7m", "bloom-7m", "llama-7m"));

/// Whether a module belongs to the first block.
bool in_first_block(const std::string& name) {
  return name.find("layers.0.") != std::string::npos || name.find("h.0.") != std::string::npos;
}

/// Whether a module of the first block sees the float model's activations, which repeat well.
bool sees_float_model(const std::string& name) {
  return name.ends_with("q_proj") || name.ends_with("k_proj") || name.ends_with("v_proj") ||
         name.ends_with("query_key_value");
}

/// A demo model of which config.json knows the first block alone.
void write_one_block(const std::filesystem::path& source, const std::filesystem::path& target) {
  auto model = gptqd::test::HostModel::read(source);
  model.config[model.config.contains("n_layer") ? "n_layer" : "num_hidden_layers"] = 1;
  std::erase_if(model.tensors, [](const auto& tensor) {
    const bool of_a_block =
        tensor.name.find("layers.") != std::string::npos || tensor.name.find(".h.") != std::string::npos;
    return of_a_block && !in_first_block(tensor.name);
  });
  model.write(target);
}

class FirstBlock : public ::testing::TestWithParam<ReferenceCase> {};

TEST_P(FirstBlock, HasTheLossesOfThePublishedCode) {
  const auto reference = reference_run(GetParam());
  const TemporaryFolder folder;
  write_one_block(reference.model, folder / "one-block");

  quantize_fully(folder / "one-block", folder / "out", reference.options);
  ASSERT_FALSE(HasFailure());

  const auto losses = losses_of(folder / "out");
  std::size_t compared = 0;
  for (const auto& expected : reference.layers) {
    if (!in_first_block(expected.module)) {
      continue;
    }
    ++compared;
    ASSERT_TRUE(losses.contains(expected.module)) << expected.module;
    const auto& got = losses.at(expected.module);
    const bool repeats = sees_float_model(expected.module);
    const double tolerance = repeats ? 1e-3 : 2e-2;
    EXPECT_NEAR(got.weight_norm, expected.weight_norm, (repeats ? 1e-4 : 2e-2) * expected.weight_norm)
        << expected.module;
    EXPECT_NEAR(got.rtn_loss, expected.rtn_loss, tolerance * expected.rtn_loss) << expected.module;
    EXPECT_NEAR(got.gptq_loss, expected.gptq_loss, tolerance * expected.gptq_loss) << expected.module;
    EXPECT_EQ(got.dead_columns, expected.dead_columns) << expected.module;
  }
  EXPECT_EQ(losses.size(), compared);
}

INSTANTIATE_TEST_SUITE_P(Chosen, FirstBlock, ::testing::ValuesIn(chosen_reference_cases()), test_name);

/// Our defaults at a number of bits, and the published code's run in the same format.
class OwnChoices : public ::testing::TestWithParam<ReferenceCase> {};

TEST_P(OwnChoices, BeatThePublishedOnesInTheSameFormat) {
  const auto reference = reference_run(GetParam());
  const TemporaryFolder folder;

  quantize_fully(reference.model, folder / "out", {{"--bits", std::to_string(reference.bits)}});
  ASSERT_FALSE(HasFailure());

  EXPECT_LT(evaluate(folder / "out", 128).at("perplexity").get<double>(), reference.perplexity);
}

/// Every width and every family once: docs/results.md has all of them.
const std::vector<ReferenceCase> formats_of_the_defaults{{.model = "opt-7m", .configuration = "w2-g128-asym"},
                                                         {.model = "bloom-7m", .configuration = "w3-g128-asym"},
                                                         {.model = "llama-7m", .configuration = "w4-g128-sym"}};

INSTANTIATE_TEST_SUITE_P(All, OwnChoices, ::testing::ValuesIn(formats_of_the_defaults), test_name);

}  // namespace
}  // namespace gptqd::jobs::test
