#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/process_grid.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Coordinates, ReplicasOfAStageAreNeighbours) {
  const GridShape shape{.stages = 2, .replicas = 3};

  EXPECT_EQ(coordinates(0, shape), (GridCoordinates{.stage = 0, .replica = 0}));
  EXPECT_EQ(coordinates(2, shape), (GridCoordinates{.stage = 0, .replica = 2}));
  EXPECT_EQ(coordinates(3, shape), (GridCoordinates{.stage = 1, .replica = 0}));
}

TEST(Coordinates, AreTheInverseOfRankOf) {
  const GridShape shape{.stages = 4, .replicas = 3};
  for (int rank = 0; rank < 12; ++rank) {
    EXPECT_EQ(rank_of(coordinates(rank, shape), shape), rank);
  }
}

TEST(Coordinates, RefuseWhatIsOutside) {
  const GridShape shape{.stages = 2, .replicas = 2};

  EXPECT_THROW(coordinates(4, shape), Error);
  EXPECT_THROW(coordinates(-1, shape), Error);
  EXPECT_THROW(rank_of({.stage = 2, .replica = 0}, shape), Error);
  EXPECT_THROW(rank_of({.stage = 0, .replica = -1}, shape), Error);
}

TEST(GridShape, DividesTheRanks) {
  EXPECT_EQ(grid_shape(8, 2).replicas, 4);
  EXPECT_EQ(grid_shape(1, 1).replicas, 1);
}

TEST(GridShape, RefusesUnevenStagesNamingBothNumbers) {
  for (const int stages : {3, 0, -2, 16}) {
    try {
      grid_shape(8, stages);
      ADD_FAILURE() << stages;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_THAT(error.message(), AllOf(HasSubstr("8 ranks"), HasSubstr(fmt::format("{} stages", stages))));
    }
  }
}

}  // namespace
}  // namespace gptqd::comm
