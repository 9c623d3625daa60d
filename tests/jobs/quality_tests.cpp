/// @file Perplexities of the demo model, and the losses of its first block against the published code's.
///
/// The first block's q, k and v see the float model, so their losses repeat well; what follows them is chaotic in the
/// last bits (reference_tests.cpp).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/reference_results.hpp"
#include "tests/support/host_model.hpp"

namespace gptqd::jobs::test {
namespace {

TEST(Quality, TheFloatModelsPerplexityIsTransformers) {
  const auto golden = nlohmann::json::parse(read_text(demo_model() / "golden.json"));

  const auto result = evaluate(demo_model(), 0);

  EXPECT_EQ(result.at("windows"), golden.at("eval_windows"));
  EXPECT_EQ(result.at("quantized"), false);
  const double expected = golden.at("eval_ppl_seqlen512_fp32compute");
  EXPECT_NEAR(result.at("perplexity").get<double>(), expected, 1e-4 * expected);
}

class FirstBlock : public ::testing::TestWithParam<std::string> {};

TEST_P(FirstBlock, HasTheLossesOfThePublishedCode) {
  const auto reference = reference_run(GetParam());
  const TemporaryFolder folder;
  auto model = gptqd::test::HostModel::read(demo_model());
  model.config["num_hidden_layers"] = 1;
  std::erase_if(model.tensors, [](const auto& tensor) {
    return tensor.name.find("layers.") != std::string::npos && tensor.name.find("layers.0.") == std::string::npos;
  });
  model.write(folder / "one-block");

  quantize_fully(folder / "one-block", folder / "out", reference.options);
  ASSERT_FALSE(HasFailure());

  const auto losses = losses_of(folder / "out");
  ASSERT_EQ(losses.size(), 6u);
  for (const auto& expected : reference.layers) {
    if (expected.module.find("layers.0.") == std::string::npos) {
      continue;
    }
    const auto& got = losses.at(expected.module);
    const bool sees_float_model = expected.module.ends_with("q_proj") || expected.module.ends_with("k_proj") ||
                                  expected.module.ends_with("v_proj");
    const double tolerance = sees_float_model ? 1e-3 : 2e-2;
    EXPECT_NEAR(got.weight_norm, expected.weight_norm, (sees_float_model ? 1e-4 : 2e-2) * expected.weight_norm)
        << expected.module;
    EXPECT_NEAR(got.rtn_loss, expected.rtn_loss, tolerance * expected.rtn_loss) << expected.module;
    EXPECT_NEAR(got.gptq_loss, expected.gptq_loss, tolerance * expected.gptq_loss) << expected.module;
    EXPECT_EQ(got.dead_columns, expected.dead_columns) << expected.module;
  }
}

INSTANTIATE_TEST_SUITE_P(All, FirstBlock, ::testing::ValuesIn(reference_names()),
                         [](const auto& info) { return test_name(info.param); });

struct Defaults {
  int bits;
  std::string same_format;  ///< the reference's configuration of the same bits, groups and symmetry
};
void PrintTo(const Defaults& defaults, std::ostream* out) { *out << defaults.bits << " bits"; }

class OwnChoices : public ::testing::TestWithParam<Defaults> {};

TEST_P(OwnChoices, BeatThePublishedOnesInTheSameFormat) {
  const TemporaryFolder folder;

  quantize_fully(demo_model(), folder / "out", {{"--bits", std::to_string(GetParam().bits)}});
  ASSERT_FALSE(HasFailure());

  EXPECT_LT(evaluate(folder / "out", 128).at("perplexity").get<double>(),
            reference_run(GetParam().same_format).perplexity);
}

INSTANTIATE_TEST_SUITE_P(All, OwnChoices,
                         ::testing::Values(Defaults{4, "w4-g128-sym"}, Defaults{3, "w3-g128-asym"},
                                           Defaults{2, "w2-g128-asym"}),
                         [](const auto& info) { return fmt::format("bits_{}", info.param.bits); });

}  // namespace
}  // namespace gptqd::jobs::test
