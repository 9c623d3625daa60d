#include <cmath>
#include <limits>

#include "kernels/factor.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/factor.hpp"

namespace gptqd {
namespace {

using test::Cpu;
using test::cut_panels;
using test::factor_panels;
using test::joined;
using test::Matrix;
using test::message_of;
using test::view_of;
using ::testing::HasSubstr;

/// Largest |L·Lᵀ − H| as a share of the geometric mean of the diagonal entries.
double residual(const Matrix<double>& l, const Matrix<double>& h) {
  const auto product = reference::product(l, reference::transposed(l));
  double largest = 0;
  for (std::int64_t r = 0; r < h.rows; ++r) {
    for (std::int64_t c = 0; c < h.cols; ++c) {
      largest = std::max(largest, std::abs(product(r, c) - h(r, c)) / std::sqrt(h(r, r) * h(c, c)));
    }
  }
  return largest;
}

template <class T>
class FactorPanel : public ::testing::Test {
 protected:
  // A sum of n products has an error of about √n·ε.
  static double tolerance(std::int64_t n) {
    return 4 * std::sqrt(static_cast<double>(n)) * static_cast<double>(std::numeric_limits<T>::epsilon());
  }
};
using RealTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FactorPanel, RealTypes);

TYPED_TEST(FactorPanel, OfOneByOneIsTheRoot) {
  Cpu cpu;
  Matrix<TypeParam> panel(3, 1);
  panel.data = {4, 6, -1};
  std::vector<std::int32_t> status{-1};

  cpu.backend->factor_panel(*cpu.stream, {.panel = panel.view(), .status = view_of(status)});
  cpu.stream->synchronize();

  EXPECT_EQ(status[0], 0);
  EXPECT_EQ(panel.data, (std::vector<TypeParam>{2, 3, -0.5}));
}

TYPED_TEST(FactorPanel, PanelsOfEveryWidthGiveTheSameFactor) {
  Cpu cpu;
  const std::int64_t n = 301;
  const auto h = reference::random_hessian(n, 350, 1);
  const auto l = *reference::cholesky(h);
  for (const std::int64_t width : {32, 100, 256, 301}) {
    auto panels = cut_panels<TypeParam>(h, width);

    const auto status = factor_panels(cpu, panels);

    ASSERT_EQ(status, 0) << width;
    const auto got = joined(panels);
    EXPECT_LE(residual(got, h), this->tolerance(n)) << width;
    for (std::int64_t r = 0; r < n; ++r) {
      for (std::int64_t c = 0; c < n; ++c) {
        if (c > r) {
          ASSERT_EQ(got(r, c), 0) << width << ": " << r << ", " << c;  // also inside the diagonal blocks
        } else {
          ASSERT_NEAR(got(r, c), l(r, c), 100 * this->tolerance(n) * std::sqrt(h(r, r)))
              << width << ": " << r << ", " << c;
        }
      }
    }
  }
}

TYPED_TEST(FactorPanel, HasTheSameBitsAtEveryNumberOfThreads) {
  const auto h = reference::random_hessian(290, 300, 2);
  std::vector<Matrix<double>> factors;
  for (const int threads : {1, 2, 3}) {
    Cpu cpu(threads);
    auto panels = cut_panels<TypeParam>(h, 64);
    ASSERT_EQ(factor_panels(cpu, panels), 0);
    factors.push_back(joined(panels));
  }
  EXPECT_EQ(factors[1], factors[0]);
  EXPECT_EQ(factors[2], factors[0]);
}

TYPED_TEST(FactorPanel, StatusNamesTheLeadingMinorThatFails) {
  Cpu cpu;
  for (const double bad :
       {-3.0, 0.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Matrix<double> h(50, 50);
    for (std::int64_t i = 0; i < 50; ++i) {
      h(i, i) = i == 36 ? bad : 2.0;
    }
    auto panels = cut_panels<TypeParam>(h, 20);  // [0, 10), [10, 30), [30, 50)

    EXPECT_EQ(factor_panels(cpu, panels), 37) << bad;
  }
}

TYPED_TEST(FactorPanel, StatusSeesNaNBesideTheDiagonal) {
  Cpu cpu;
  Matrix<double> h(8, 8);
  for (std::int64_t i = 0; i < 8; ++i) {
    h(i, i) = 1;
  }
  h(5, 2) = std::numeric_limits<double>::quiet_NaN();
  auto panels = cut_panels<TypeParam>(h, 8);

  EXPECT_EQ(factor_panels(cpu, panels), 6);
}

TYPED_TEST(FactorPanel, UpdateSubtractsTheProductBelowTheDiagonal) {
  Cpu cpu;
  const auto rows = reference::random_normal(530, 40, 3);
  const auto before = reference::random_normal(530, 270, 4);
  const auto typed = rows.template as<TypeParam>();
  auto target = before.template as<TypeParam>();

  cpu.backend->update_panel(*cpu.stream,
                            {.rows = typed.view(), .top = typed.view().slice_rows(0, 270), .target = target.view()});
  cpu.stream->synchronize();

  const auto product = reference::product(rows, reference::transposed(rows));
  for (std::int64_t r = 0; r < 530; ++r) {
    for (std::int64_t c = 0; c <= std::min<std::int64_t>(r, 269); ++c) {
      ASSERT_NEAR(static_cast<double>(target(r, c)), before(r, c) - product(r, c), 1e-4) << r << ", " << c;
    }
  }
}

TEST(FactorPanelArgs, AreRefusedWithGotAndExpected) {
  Cpu cpu;
  Matrix<float> panel(4, 5);
  Matrix<float> rows(6, 3);
  Matrix<float> target(6, 4);
  std::vector<std::int32_t> status(1);
  EXPECT_THAT(
      message_of([&] { cpu.backend->factor_panel(*cpu.stream, {.panel = panel.view(), .status = view_of(status)}); }),
      HasSubstr("the panel is [4, 5], expected no more columns than rows"));
  EXPECT_THAT(message_of([&] {
                cpu.backend->update_panel(
                    *cpu.stream, {.rows = rows.view(), .top = rows.view().slice_rows(0, 3), .target = target.view()});
              }),
              HasSubstr("top is [3, 3], expected [4, 3]"));
}

}  // namespace
}  // namespace gptqd
