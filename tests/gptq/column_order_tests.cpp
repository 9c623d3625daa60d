#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "gptq/column_order.hpp"

namespace gptqd::gptq {
namespace {

using ::testing::ElementsAre;

TEST(ColumnOrderTest, NaturalOrderIsReversedInTheFactor) {
  const auto order = make_column_order(6, 2, ActOrder::none, {});

  EXPECT_THAT(order.index, ElementsAre(5, 4, 3, 2, 1, 0));
  EXPECT_THAT(order.position, ElementsAre(5, 4, 3, 2, 1, 0));
  EXPECT_THAT(order.factor.group, ElementsAre(2, 2, 1, 1, 0, 0));
  EXPECT_THAT(order.factor.member, ElementsAre(1, 0, 1, 0, 1, 0));
  EXPECT_THAT(order.original.group, ElementsAre(0, 0, 1, 1, 2, 2));
  EXPECT_THAT(order.original.member, ElementsAre(0, 1, 0, 1, 0, 1));
}

TEST(ColumnOrderTest, StaticGroupsStayWithTheOriginalColumns) {
  const std::vector<double> diagonal{1, 5, 3, 5};

  const auto order = make_column_order(4, 2, ActOrder::fixed, diagonal);

  // Quantized in the order 1, 3 (a tie, by index), 2, 0; the factor has it backwards.
  EXPECT_THAT(order.index, ElementsAre(0, 2, 3, 1));
  EXPECT_THAT(order.position, ElementsAre(0, 3, 1, 2));
  EXPECT_THAT(order.factor.group, ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(order.factor.member, ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(order.original.group, ElementsAre(0, 0, 1, 1));
}

TEST(ColumnOrderTest, DynamicGroupsAreRunsInProcessingOrder) {
  const std::vector<double> diagonal{1, 5, 3, 5};

  const auto order = make_column_order(4, 2, ActOrder::dynamic, diagonal);

  EXPECT_THAT(order.index, ElementsAre(0, 2, 3, 1));
  EXPECT_THAT(order.factor.group, ElementsAre(1, 1, 0, 0));
  EXPECT_THAT(order.factor.member, ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(order.original.group, ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(order.original.member, ElementsAre(1, 0, 0, 1));
}

TEST(ColumnOrderTest, LargestDiagonalFirstAndTiesByIndex) {
  std::vector<double> diagonal{0.0, -0.0, -1.0, -2.0, 5e-324, 1e300};
  for (int i = 0; i < 5000; ++i) {
    diagonal.push_back(std::exp(0.01 * (i * 7919 % 2003)));  // each some times
  }
  std::vector<std::int32_t> expected(diagonal.size());
  std::iota(expected.begin(), expected.end(), 0);
  std::stable_sort(expected.begin(), expected.end(), [&](std::int32_t a, std::int32_t b) {
    return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
  });

  auto order = make_column_order(std::ssize(diagonal), std::ssize(diagonal), ActOrder::fixed, diagonal).index;

  std::reverse(order.begin(), order.end());  // the factor has it backwards
  EXPECT_EQ(order, expected);
}

TEST(ColumnOrderTest, OneColumnAndOneGroup) {
  EXPECT_THAT(make_column_order(1, 1, ActOrder::none, {}).index, ElementsAre(0));
  EXPECT_THAT(make_column_order(3, 3, ActOrder::none, {}).original.group, ElementsAre(0, 0, 0));
}

TEST(ColumnOrderTest, GroupsAndDiagonalsThatDoNotFitAreRefused) {
  EXPECT_THROW(make_column_order(6, 4, ActOrder::none, {}), Error);
  EXPECT_THROW(make_column_order(4, 2, ActOrder::fixed, std::vector<double>{1, 2}), Error);
}

}  // namespace
}  // namespace gptqd::gptq
