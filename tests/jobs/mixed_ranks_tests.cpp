/// @file Ranks that would not compute the same, as on nodes with other CPUs, programs or files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Two ranks, each with OpenBLAS kernels of its own, as `mpirun -np 1 env ... : -np 1 env ...`.
Words with_other_kernels(const Options& options) {
  Words words = command_line(2, options);
  const auto program = std::find(words.begin(), words.end(), gptqd::test::binary_path("gptq-dist").string());
  const Words arguments(program, words.end());
  words.erase(program - 1, words.end());
  words.insert(words.end(), {"1", "env", "OPENBLAS_CORETYPE=Haswell"});
  words.insert(words.end(), arguments.begin(), arguments.end());
  words.insert(words.end(), {":", "-np", "1", "env", "OPENBLAS_CORETYPE=Nehalem"});
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

TEST(MixedRanks, AreRefusedNamingTheRankAndTheField) {
  const TemporaryFolder folder;

  const auto result = run_command(with_other_kernels(quick_run(folder / "out")));

  EXPECT_EQ(result.code, 65);
  EXPECT_THAT(result.err, AllOf(HasSubstr("rank 1: this rank, on "), HasSubstr("environment.backend"),
                                HasSubstr("Haswell\" there"), HasSubstr("Nehalem\" here"), HasSubstr("--allow-mixed")));
  EXPECT_FALSE(std::filesystem::exists(work_of(folder / "out"))) << "refused before anything is written";
}

TEST(MixedRanks, AreNotedWhenAllowed) {
  const TemporaryFolder folder;

  const auto result = run_command(with_other_kernels(quick_run(folder / "out", {{"--allow-mixed", ""}})));

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err + result.out, HasSubstr("rank 1 computes in another environment than rank 0"));
}

}  // namespace
}  // namespace gptqd::jobs::test
