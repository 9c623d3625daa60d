/// @file Whole models against the published code: losses of all layers and perplexity.
///
/// Chained results of GPTQ are chaotic in the last bits: the reference itself differs between CPUs by up to 0.35 % in
/// perplexity at 4 bits, 0.5 % at 3 and 3 % at 2, and by 0.34 % in the mean ratio of losses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "tests/jobs/reference_results.hpp"

namespace gptqd::jobs::test {
namespace {

class WholeModel : public ::testing::TestWithParam<ReferenceCase> {};

TEST_P(WholeModel, HasTheLossesAndPerplexityOfThePublishedCode) {
  const auto reference = reference_run(GetParam());
  const double ratio_tolerance = reference.bits == 4 ? 0.01 : reference.bits == 3 ? 0.02 : 0.04;
  const double perplexity_tolerance = reference.bits == 4 ? 0.005 : reference.bits == 3 ? 0.016 : 0.05;
  const TemporaryFolder folder;

  quantize_fully(reference.model, folder / "out", reference.options);
  ASSERT_FALSE(HasFailure());

  const auto losses = losses_of(folder / "out");
  ASSERT_EQ(losses.size(), reference.layers.size());
  double log_ratio = 0;
  double expected_log_ratio = 0;
  for (const auto& expected : reference.layers) {
    const auto& got = losses.at(expected.module);
    // Units at the edge of firing: for the same layer the reference's own configurations say 217, 218 and 219.
    EXPECT_LE(std::abs(got.dead_columns - expected.dead_columns), 2) << expected.module;
    log_ratio += std::log(got.gptq_loss / got.rtn_loss) / static_cast<double>(losses.size());
    expected_log_ratio += std::log(expected.gptq_loss / expected.rtn_loss) / static_cast<double>(losses.size());
  }
  const double expected_ratio = std::exp(expected_log_ratio);
  EXPECT_NEAR(std::exp(log_ratio), expected_ratio, ratio_tolerance * expected_ratio);
  const auto report = report_of(folder / "out");
  EXPECT_NEAR(report.at("loss_ratio").get<double>(), std::exp(log_ratio), 1e-9);
  for (const auto& layer : report.at("layers")) {
    EXPECT_EQ(layer.at("tokens"), 128 * 512);
    EXPECT_EQ(layer.at("retries"), 0);
  }

  double perplexity = evaluate(folder / "out", 128).at("perplexity");
  if (reference.bits == 2) {
    // A throw of dice: w2-channel-asym gives 63 to 69 when nothing but the order of summation changes. Take two.
    auto options = reference.options;
    options["--hessian-leaves"] = "4";
    quantize_fully(reference.model, folder / "other", options);
    ASSERT_FALSE(HasFailure());
    perplexity = (perplexity + evaluate(folder / "other", 128).at("perplexity").get<double>()) / 2;
  }
  // Never worse than the tolerance. Better is allowed twice as far: w3-channel-sym is 2 % better at every order of
  // summation and in f64 (docs/results.md); further off would be another computation.
  EXPECT_LT(perplexity, (1 + perplexity_tolerance) * reference.perplexity);
  EXPECT_GT(perplexity, (1 - 2 * perplexity_tolerance) * reference.perplexity);
}

INSTANTIATE_TEST_SUITE_P(Chosen, WholeModel, ::testing::ValuesIn(chosen_reference_cases()), test_name);
INSTANTIATE_TEST_SUITE_P(Other, WholeModel, ::testing::ValuesIn(other_reference_cases()), test_name);

}  // namespace
}  // namespace gptqd::jobs::test
