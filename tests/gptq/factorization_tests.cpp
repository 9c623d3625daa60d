#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gptq/factorization.hpp"
#include "gptq/hessian.hpp"
#include "gptq/obq_inverse.hpp"
#include "tests/gptq/support.hpp"
#include "tests/reference/factor.hpp"

namespace gptqd::gptq {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

QuantSpec f64_spec() {
  QuantSpec spec;
  spec.solver = DType::f64;
  return spec;
}

TEST(PanelLayoutTest, CutsAreAlignedWhereTheSolveStarts) {
  const PanelLayout layout(10, 4);

  ASSERT_EQ(layout.count(), 3);
  EXPECT_EQ(layout.at(0).first, 6);
  EXPECT_EQ(layout.at(0).cols, 4);
  EXPECT_EQ(layout.at(0).rows, 4);
  EXPECT_EQ(layout.at(1).first, 2);
  EXPECT_EQ(layout.at(2).first, 0);
  EXPECT_EQ(layout.at(2).cols, 2);
  EXPECT_EQ(layout.at(2).rows, 10);
  EXPECT_THROW(layout.at(3), Error);
}

TEST(PanelLayoutTest, PanelsHoldWholeBlocksAndBlocksHoldWholeDynamicGroups) {
  QuantSpec spec;
  EXPECT_EQ(solve_block(spec), 128);
  EXPECT_EQ(panel_layout(1024, spec, {.panel_columns = 64}).at(0).cols, 128);
  spec.act_order = ActOrder::none;
  spec.group_size = 48;
  EXPECT_EQ(solve_block(spec), 96);
  EXPECT_EQ(panel_layout(960, spec, {.panel_columns = 256}).at(0).cols, 288);
  spec.group_size = 256;
  EXPECT_EQ(solve_block(spec), 256);
  spec.group_size = -1;
  EXPECT_EQ(solve_block(spec), 128);
}

TEST(DampTest, AddsAShareOfTheMean) {
  const auto damped = damp(std::vector<double>{1, 2, 3}, 0.1, f64_spec());

  EXPECT_THAT(damped.values, Pointwise(DoubleNear(1e-15), {1.2, 2.2, 3.2}));
  EXPECT_THAT(damped.extra, Pointwise(DoubleNear(1e-15), {0.2, 0.2, 0.2}));
}

TEST(DampTest, DeadColumnsGetTheMeanOfTheLiveOnes) {
  const std::vector<double> diagonal{0, 2, 4};

  const auto damped = damp(diagonal, 0.5, f64_spec());

  EXPECT_THAT(dead_columns(diagonal), ElementsAre(0));
  EXPECT_THAT(damped.values, ElementsAre(4.5, 3.5, 5.5));
  EXPECT_THAT(damped.extra, ElementsAre(4.5, 1.5, 1.5));
}

TEST(DampTest, InReferenceModeDeadColumnsCountInTheMean) {
  auto spec = f64_spec();
  spec.reference = true;
  spec.dead_diagonal = 6;

  const auto damped = damp(std::vector<double>{0, 2, 4}, 0.5, spec);

  EXPECT_THAT(damped.values, ElementsAre(8, 4, 6));
}

TEST(DampTest, AllColumnsDead) {
  EXPECT_THAT(damp(std::vector<double>{0, 0}, 0.5, f64_spec()).values, ElementsAre(1.5, 1.5));
}

TEST(DampTest, ExtraIsWhatTheSolversTypeReallyAdds) {
  const std::vector<double> diagonal{1e7, 1};

  const auto damped = damp(diagonal, 0.01, QuantSpec{});

  EXPECT_EQ(damped.values[0], static_cast<double>(static_cast<float>(damped.values[0])));
  EXPECT_EQ(damped.extra[0], damped.values[0] - diagonal[0]);
}

/// H of some activations in panels of `width`, natural order.
struct Problem {
  explicit Problem(std::int64_t columns, std::int64_t width, std::vector<double> matrix)
      : order(make_column_order(columns, columns, ActOrder::none, {})),
        device_order(local.backend(), local.stream(), order),
        device(local.team(), columns, columns, matrix),
        h(std::move(matrix)),
        input{.leaves = {}, .tokens = 1, .matrix = device.view(), .find_non_finite = {}},
        source(local.team(), input, columns, 8, "layer"),
        panels(source.panels(PanelLayout(columns, width), device_order, DType::f64)),
        diagonal(gather_diagonal(local.team(), panels)) {}

  test::LocalTeam local;
  ColumnOrder order;
  DeviceOrder device_order;
  test::DeviceMatrix<double> device;
  std::vector<double> h;
  HessianInput input;
  HessianSource source;
  Panels panels;
  std::vector<double> diagonal;
};

TEST(FactorizeTest, PanelsOfTheFactorMultiplyBackToTheDampedHessian) {
  constexpr std::int64_t n = 23;
  Problem problem(n, 5, test::gram(test::activations(40, n, 3), n));

  const auto result = factorize(problem.local.team(), problem.panels, problem.diagonal, f64_spec());

  ASSERT_TRUE(result.factor.has_value());
  EXPECT_EQ(result.retries, 0);
  EXPECT_EQ(result.damping, 0.01);
  std::vector<double> l(n * n, 0.0);
  for (int k = 0; k < result.factor->count(); ++k) {
    const auto shape = result.factor->layout().at(k);
    const auto panel = result.factor->view(k).as<double>();
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      for (std::int64_t c = 0; c < shape.cols; ++c) {
        l[static_cast<std::size_t>((shape.first + r) * n + shape.first + c)] = panel(r, c);
      }
    }
  }
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) {
      double product = 0;
      for (std::int64_t k = 0; k < n; ++k) {
        product += l[static_cast<std::size_t>(r * n + k)] * l[static_cast<std::size_t>(c * n + k)];
      }
      const double h = problem.h[static_cast<std::size_t>((n - 1 - r) * n + n - 1 - c)];
      const double expected = h + (r == c ? result.diagonal.extra[static_cast<std::size_t>(r)] : 0.0);
      EXPECT_NEAR(product, expected, 1e-10 * (1 + std::abs(expected))) << r << ", " << c;
    }
  }
}

TEST(FactorizeTest, TheLadderClimbsUntilTheMatrixIsPositiveDefinite) {
  // Eigenvalues 1 + x, 1 − x, ...: the mean of the diagonal is 1, so λ > x − 1 is needed.
  std::vector<double> h{1, 1.05, 0, 0, 1.05, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  Problem problem(4, 1, h);

  const auto result = factorize(problem.local.team(), problem.panels, problem.diagonal, f64_spec());

  ASSERT_TRUE(result.factor.has_value());
  EXPECT_EQ(result.retries, 1);
  EXPECT_DOUBLE_EQ(result.damping, 0.1);
}

TEST(FactorizeTest, TheLadderEndsAtOne) {
  std::vector<double> h{1, 5, 5, 1};
  Problem problem(2, 1, h);
  auto spec = f64_spec();
  spec.damping = 0.05;

  const auto result = factorize(problem.local.team(), problem.panels, problem.diagonal, spec);

  EXPECT_FALSE(result.factor.has_value());
  EXPECT_EQ(result.retries, 2);  // 0.05, 0.5, 1
  EXPECT_EQ(result.damping, 1);
}

TEST(InvertHessianTest, AgreesWithTheReference) {
  constexpr std::int64_t n = 19;
  Problem problem(n, 8, test::gram(test::activations(60, n, 5), n));
  const auto damped = damp(problem.diagonal, 0.01, f64_spec());

  const auto inverse = invert_hessian(problem.local.team(), problem.panels, damped.values, "layer");

  const auto got = test::download<double>(problem.local.team(), inverse, n * n);
  reference::Matrix<double> damped_hessian(n, n);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < n; ++c) {
      damped_hessian(r, c) = r == c ? damped.values[static_cast<std::size_t>(r)]
                                    : problem.h[static_cast<std::size_t>((n - 1 - r) * n + n - 1 - c)];
    }
  }
  const auto expected = reference::inverse(damped_hessian);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < n; ++c) {
      EXPECT_NEAR(got[static_cast<std::size_t>(r * n + c)], expected(r, c),
                  1e-9 * std::sqrt(expected(r, r) * expected(c, c)))
          << r << ", " << c;
    }
  }
}

}  // namespace
}  // namespace gptqd::gptq
