#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "comm/world.hpp"

namespace gptqd::comm {
namespace {

using ::testing::HasSubstr;

class LauncherRank : public ::testing::Test {
 protected:
  LauncherRank() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
      unsetenv(name);
    }
  }
};

TEST_F(LauncherRank, IsZeroWithoutALauncher) { EXPECT_EQ(launcher_rank(), 0); }

TEST_F(LauncherRank, ComesFromTheEnvironment) {
  setenv("SLURM_PROCID", "7", 1);
  EXPECT_EQ(launcher_rank(), 7);
  setenv("PMIX_RANK", "6", 1);
  EXPECT_EQ(launcher_rank(), 6);
  setenv("OMPI_COMM_WORLD_RANK", "5", 1);
  EXPECT_EQ(launcher_rank(), 5);
}

TEST_F(LauncherRank, IgnoresWhatIsNoRank) {
  setenv("OMPI_COMM_WORLD_RANK", "five", 1);
  setenv("PMIX_RANK", "-3", 1);
  setenv("SLURM_PROCID", "12x", 1);

  EXPECT_EQ(launcher_rank(), 0);
}

TEST(WorldOptions, StallSecondsHaveToBeUsable) {
  for (const double seconds : {0.0, -1.0, 0.1, std::nan(""), HUGE_VAL}) {
    try {
      World::start({.stall_seconds = seconds});
      ADD_FAILURE() << seconds;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_THAT(error.message(), HasSubstr("--stall-seconds"));
    }
  }
}

}  // namespace
}  // namespace gptqd::comm
