#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/base/error.hpp"
#include "pipeline/paired_difference.hpp"

namespace gptqd::pipeline {
namespace {

TEST(PairedDifference, IsTheMeanWithStudentsInterval) {
  const std::vector<double> a{1, 2, 3, 4, 5};
  const std::vector<double> b{2, 2, 5, 5, 5};  // differences 1 0 2 1 0: mean 0.8, s = sqrt(0.7)

  const auto difference = paired_difference(a, b);

  EXPECT_EQ(difference.windows, 5);
  EXPECT_NEAR(difference.mean, 0.8, 1e-15);
  ASSERT_TRUE(difference.half_width);
  EXPECT_NEAR(*difference.half_width, 2.776445105 * std::sqrt(0.7 / 5), 1e-8);  // t(0.975, 4) of a table
}

TEST(PairedDifference, OfManyWindowsNearsTheNormalInterval) {
  std::vector<double> a(100'000, 3);
  std::vector<double> b(100'000, 3);
  for (std::size_t i = 0; i < b.size(); ++i) {
    b[i] += i % 2 == 0 ? 1 : -1;
  }

  const auto difference = paired_difference(a, b);

  EXPECT_NEAR(difference.mean, 0, 1e-12);
  EXPECT_NEAR(*difference.half_width, 1.959964 / std::sqrt(1e5), 1e-6);
}

TEST(PairedDifference, DoesNotSeeWhatWindowsHaveInCommon) {
  const std::vector<double> a{1, 50, 300};
  const std::vector<double> b{1.5, 50.5, 300.5};

  const auto difference = paired_difference(a, b);

  EXPECT_EQ(difference.mean, 0.5);
  EXPECT_EQ(difference.half_width, 0);
}

TEST(PairedDifference, OfOneWindowHasNoInterval) {
  const std::vector<double> a{1};
  const std::vector<double> b{2};

  EXPECT_EQ(paired_difference(a, b).mean, 1);
  EXPECT_FALSE(paired_difference(a, b).half_width);
}

TEST(PairedDifference, NeedsTheSameWindows) {
  const std::vector<double> a{1, 2};
  const std::vector<double> b{2};

  EXPECT_THROW(paired_difference(a, b), Error);
  EXPECT_THROW(paired_difference({}, {}), Error);
}

}  // namespace
}  // namespace gptqd::pipeline
