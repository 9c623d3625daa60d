#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "pipeline/rope.hpp"

namespace gptqd::pipeline {
namespace {

using Kind = RopeSpec::Kind;

RopeSpec rope(Kind kind, double factor = 1.0, std::int64_t original = 64) {
  RopeSpec spec;
  spec.kind = kind;
  spec.width = 8;
  spec.theta = 10000.0;
  spec.factor = factor;
  spec.original_positions = original;
  return spec;
}

TEST(Rope, StandardFrequenciesAreATenthEach) {
  EXPECT_THAT(rope_frequencies(rope(Kind::standard), 100),
              ::testing::Pointwise(::testing::DoubleNear(1e-12), {1.0, 0.1, 0.01, 0.001}));
}

TEST(Rope, LinearDividesThem) {
  EXPECT_THAT(rope_frequencies(rope(Kind::linear, 4.0), 100),
              ::testing::Pointwise(::testing::DoubleNear(1e-12), {0.25, 0.025, 0.0025, 0.00025}));
}

TEST(Rope, DynamicIsStandardUpToTheModelsPositions) {
  EXPECT_EQ(rope_frequencies(rope(Kind::dynamic, 4.0), 64), rope_frequencies(rope(Kind::standard), 64));
}

TEST(Rope, DynamicStretchesTheBaseBeyondThem) {
  // theta · ((4·128/64) − 3)^(8/6)
  const double theta = 10000.0 * std::pow(5.0, 8.0 / 6.0);

  const auto got = rope_frequencies(rope(Kind::dynamic, 4.0), 128);

  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(got[static_cast<std::size_t>(i)], std::pow(theta, -i / 4.0), 1e-12);
  }
}

TEST(Rope, Llama3KeepsFastDividesSlowAndBlendsBetween) {
  auto spec = rope(Kind::llama3, 8.0, 64);
  spec.low_frequency_factor = 1.0;
  spec.high_frequency_factor = 4.0;
  // Wavelengths 2π, 20π, 200π, ... against 64 / 4 = 16 and 64 / 1.
  const double smooth = (64 * 0.1 / (2 * std::numbers::pi) - 1.0) / 3.0;

  const auto got = rope_frequencies(spec, 32);

  EXPECT_NEAR(got[0], 1.0, 1e-12);
  EXPECT_NEAR(got[1], (1 - smooth) * 0.1 / 8 + smooth * 0.1, 1e-12);
  EXPECT_NEAR(got[2], 0.01 / 8, 1e-12);
}

TEST(Rope, YarnKeepsFastAndDividesSlow) {
  auto spec = rope(Kind::yarn, 4.0, 4096);

  const auto got = rope_frequencies(spec, 32);

  EXPECT_NEAR(got.front(), 1.0, 1e-12);
  EXPECT_NEAR(got.back(), 0.001 / 4, 1e-12);
}

TEST(Rope, YarnWithoutARampIsAStepAndNoDivisionByZero) {
  auto spec = rope(Kind::yarn, 4.0, 64);
  spec.beta_fast = spec.beta_slow = 1.0;
  spec.truncate = false;

  for (const double frequency : rope_frequencies(spec, 32)) {
    EXPECT_TRUE(std::isfinite(frequency));
  }
}

TEST(Rope, LongropeTakesTheFactorsOfTheWindowsLength) {
  auto spec = rope(Kind::longrope, 2.0, 64);
  spec.short_factors = {1, 1, 1, 2};
  spec.long_factors = {2, 2, 2, 4};

  EXPECT_NEAR(rope_frequencies(spec, 64).back(), 0.0005, 1e-12);
  EXPECT_NEAR(rope_frequencies(spec, 65).back(), 0.00025, 1e-12);
}

TEST(Rope, TablesHoldCosineAndSineOfEachPosition) {
  auto spec = rope(Kind::standard);
  spec.amplitude = 2.0;

  const auto tables = rope_tables(spec, 3);

  ASSERT_EQ(tables.half, 4);
  ASSERT_EQ(tables.cos.size(), 12u);
  EXPECT_EQ(tables.cos[0], 2.0f);
  EXPECT_EQ(tables.sin[0], 0.0f);
  EXPECT_FLOAT_EQ(tables.cos[8], static_cast<float>(2 * std::cos(2.0)));
  EXPECT_FLOAT_EQ(tables.sin[9], static_cast<float>(2 * std::sin(0.2)));
}

}  // namespace
}  // namespace gptqd::pipeline
