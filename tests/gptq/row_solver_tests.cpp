#include <gtest/gtest.h>

#include "gptq/row_solver.hpp"

namespace gptqd::gptq {
namespace {

TEST(RowsOfTest, RanksShareWholeTiles) {
  for (const std::int64_t rows : {1, 15, 16, 17, 100, 1000}) {
    for (const int size : {1, 2, 3, 4, 7}) {
      std::int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const auto range = rows_of(rank, size, rows, 16);
        EXPECT_EQ(range.first, next);
        EXPECT_TRUE(range.first % 16 == 0 || range.count == 0) << rows << " rows, rank " << rank << " of " << size;
        next += range.count;
      }
      EXPECT_EQ(next, rows);
    }
  }
}

TEST(RowsOfTest, MoreRanksThanTilesLeavesSomeWithoutRows) {
  EXPECT_EQ(rows_of(0, 2, 10, 16).count, 0);
  EXPECT_EQ(rows_of(1, 2, 10, 16).count, 10);
}

}  // namespace
}  // namespace gptqd::gptq
