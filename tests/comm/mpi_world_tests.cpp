#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/process_grid.hpp"
#include "tests/comm/mpi_main.hpp"

namespace gptqd::comm {
namespace {

using test::world;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(World, KnowsItsPlace) {
  EXPECT_EQ(world().rank(), launcher_rank());
  EXPECT_EQ(world().group().rank(), world().rank());
  EXPECT_EQ(world().group().size(), world().size());
  EXPECT_EQ(world().local_size(), world().size()) << "the tests run on one node";
  EXPECT_EQ(world().local_rank(), world().rank());
  EXPECT_FALSE(world().host_name().empty());
}

TEST(World, StartsOnce) {
  try {
    World::start({});
    ADD_FAILURE() << "a second World started";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.message(), HasSubstr("once"));
  }
}

TEST(World, ActivityAndLongStepsAreTicks) {
  const auto before = world().progress().ticks();

  world().set_activity("block 3, mlp_in");
  { const auto step = world().long_host_step("tokenizing"); }
  world().set_activity("");

  EXPECT_GE(world().progress().ticks() - before, 3u);
}

TEST(ProcessGrid, OneStageHoldsAllRanks) {
  ProcessGrid grid(world(), 1);

  EXPECT_EQ(grid.stage(), 0);
  EXPECT_EQ(grid.replica(), world().rank());
  EXPECT_EQ(grid.replicas(), world().size());
  EXPECT_EQ(grid.replicas_group().size(), world().size());
  EXPECT_EQ(grid.replicas_group().rank(), grid.replica());
  EXPECT_EQ(grid.previous_stage_rank(), -1);
  EXPECT_EQ(grid.next_stage_rank(), -1);
}

TEST(ProcessGrid, AStagePerRankIsAChain) {
  const int rank = world().rank();
  const int size = world().size();

  ProcessGrid grid(world(), size);

  EXPECT_EQ(grid.stage(), rank);
  EXPECT_EQ(grid.replicas_group().size(), 1);
  EXPECT_EQ(grid.previous_stage_rank(), rank - 1);
  EXPECT_EQ(grid.next_stage_rank(), rank + 1 == size ? -1 : rank + 1);
}

TEST(ProcessGrid, TwoByTwo) {
  if (world().size() != 4) {
    GTEST_SKIP() << "needs 4 ranks";
  }
  ProcessGrid grid(world(), 2);

  EXPECT_EQ(grid.stage(), world().rank() / 2);
  EXPECT_EQ(grid.replicas_group().size(), 2);
  EXPECT_EQ(grid.replicas_group().world_rank(0), 2 * grid.stage());
  EXPECT_EQ(grid.next_stage_rank(), grid.stage() == 0 ? world().rank() + 2 : -1);
  EXPECT_EQ(grid.previous_stage_rank(), grid.stage() == 1 ? world().rank() - 2 : -1);
  EXPECT_EQ(grid.world_rank(1, 0), 2);
}

TEST(ProcessGrid, RefusesStagesThatDoNotDivide) {
  const int stages = world().size() + 1;
  try {
    ProcessGrid grid(world(), stages);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.message(),
                AllOf(HasSubstr(fmt::format("{} ranks", world().size())), HasSubstr(fmt::format("{} stages", stages))));
  }
}

}  // namespace
}  // namespace gptqd::comm
