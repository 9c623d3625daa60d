/// @file What gptq-dist plan says without running anything, and of what has run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(Plan, PredictsSecondsAndMemoryAtSeveralNumbersOfRanks) {
  const auto result = gptq_dist(1, Words{"plan", "--model", "synthetic:bloom-176b", "--ranks", "1", "2", "16"});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_THAT(result.out, AllOf(HasSubstr("70 blocks"), HasSubstr("100.0 %"), HasSubstr("rates of an NVIDIA H200"),
                                HasSubstr("345.28 GB to read"), ContainsRegex("\n   16 .*more leaves")));
}

TEST(Plan, SetsWhatARunTookBesideThePrediction) {
  const TemporaryFolder folder;
  expect_success(1, quick_run(folder / "one"));
  expect_success(2, quick_run(folder / "two"));

  const auto result = gptq_dist(2, Words{"plan", "--measured", work_of(folder / "one") / "report.json",
                                         work_of(folder / "two") / "report.json", "--ranks", "1", "4", "--link", "10"});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("speedup"), HasSubstr("exposed"), HasSubstr("rates fitted to the runs"),
                                ContainsRegex("opt-7m +2 .* 1?[0-9]\\.[0-9][0-9]x")));
  // Its rates are made to fit the run on one rank; the sum of stages is less than from block to block.
  EXPECT_THAT(result.out, ContainsRegex("opt-7m +1 .*-[0-9.]+%"));
}

TEST(Plan, RefusesWhatMakesNoSense) {
  EXPECT_EQ(gptq_dist(1, Words{"plan"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--model", "synthetic:opt-66b", "--link", "0"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--model", "synthetic:opt-66b", "--samples", "-3"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--model", "synthetic:opt-66b", "--ranks", "0"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--model", "synthetic:opt-66b", "--panel-columns", "0"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--measured", source_path("jobs/demo/opt-7m/config.json")}).code, 65);
  EXPECT_EQ(gptq_dist(1, Words{"plan", "--measured", "nowhere.json"}).code, 65);
}

}  // namespace
}  // namespace gptqd::jobs::test
