#include <cmath>
#include <limits>

#include "kernels/factor.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/factor.hpp"

namespace gptqd {
namespace {

using test::cut_panels;
using test::DeviceTensors;
using test::factor_panels;
using test::flat;
using test::joined;
using test::Matrix;
using test::message_of;
using test::OnDevice;
using test::with_real_types;
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

// A sum of n products has an error of about √n·ε.
template <class T>
double tolerance(std::int64_t n) {
  return 4 * std::sqrt(static_cast<double>(n)) * static_cast<double>(std::numeric_limits<T>::epsilon());
}

class FactorPanel : public OnDevice {};
INSTANTIATE_TEST_SUITE_P(, FactorPanel, ::testing::ValuesIn(test::available_devices()), test::device_name);

TEST_P(FactorPanel, OfOneByOneIsTheRoot) {
  with_real_types([&]<class T>() {
    Matrix<T> host(3, 1);
    host.data = {4, 6, -1};
    const auto panel = upload(host);
    const auto status = upload(std::vector<std::int32_t>{-1});

    backend->factor_panel(*stream, {.panel = panel.view, .status = flat(status)});

    EXPECT_EQ(download(status)(0, 0), 0);
    EXPECT_EQ(download(panel).data, (std::vector<T>{2, 3, -0.5}));
  });
}

TEST_P(FactorPanel, PanelsOfEveryWidthGiveTheSameFactor) {
  const std::int64_t n = 301;
  const auto h = reference::random_hessian(n, 350, 1);
  const auto l = *reference::cholesky(h);
  with_real_types([&]<class T>() {
    for (const std::int64_t width : {32, 100, 256, 301}) {
      auto panels = cut_panels<T>(h, width);

      const auto status = factor_panels(*this, panels);

      ASSERT_EQ(status, 0) << width;
      const auto got = joined(panels);
      EXPECT_LE(residual(got, h), tolerance<T>(n)) << width;
      for (std::int64_t r = 0; r < n; ++r) {
        for (std::int64_t c = 0; c < n; ++c) {
          if (c > r) {
            ASSERT_EQ(got(r, c), 0) << width << ": " << r << ", " << c;  // also inside the diagonal blocks
          } else {
            ASSERT_NEAR(got(r, c), l(r, c), 100 * tolerance<T>(n) * std::sqrt(h(r, r)))
                << width << ": " << r << ", " << c;
          }
        }
      }
    }
  });
}

TEST_P(FactorPanel, OfManyRowsSolvesThoseBelowTheBlock) {
  constexpr std::int64_t w = 1100;
  constexpr std::int64_t rows = 8200;
  auto all = test::normal(rows, w, 7);
  for (std::int64_t r = 0; r < w; ++r) {
    for (std::int64_t c = 0; c < r; ++c) {
      all(c, r) = all(r, c);
    }
    all(r, r) = 100;  // eigenvalues of the rest are 66 at most
  }
  with_real_types([&]<class T>() {
    Matrix<T> host(rows, w);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < w; ++c) {
        host(r, c) = static_cast<T>(all(r, c));
      }
    }
    const auto panel = upload(host);
    const auto status = upload(std::vector<std::int32_t>{-1});

    backend->factor_panel(*stream, {.panel = panel.view, .status = flat(status)});

    ASSERT_EQ(download(status)(0, 0), 0);
    const auto got = download(panel);
    for (std::int64_t r = 0; r < rows; r += r < w ? 37 : 211) {  // L Lᵀ and L21 Lᵀ
      for (std::int64_t c = 0; c <= std::min(r, w - 1); ++c) {
        double product = 0;
        double magnitude = 0;
        for (std::int64_t k = 0; k <= c; ++k) {
          const double term = static_cast<double>(got(r, k)) * static_cast<double>(got(c, k));
          product += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(product, static_cast<double>(host(r, c)), 10 * std::numeric_limits<T>::epsilon() * magnitude)
            << r << ", " << c;
      }
    }
  });
}

TEST_P(FactorPanel, HasTheSameBitsAtEveryNumberOfThreads) {
  const auto h = reference::random_hessian(290, 300, 2);
  with_real_types([&]<class T>() {
    std::vector<Matrix<double>> factors;
    for (const int threads : {1, 2, 3}) {
      DeviceTensors on(GetParam(), threads);
      auto panels = cut_panels<T>(h, 64);
      ASSERT_EQ(factor_panels(on, panels), 0);
      factors.push_back(joined(panels));
    }
    EXPECT_EQ(factors[1], factors[0]);
    EXPECT_EQ(factors[2], factors[0]);
  });
}

TEST_P(FactorPanel, WritesNothingOutsideAStridedPanel) {
  const auto h = reference::random_hessian(90, 120, 5);
  with_real_types([&]<class T>() {
    auto panels = cut_panels<T>(h, 90);
    const auto host = panels[0].values;
    ASSERT_EQ(factor_panels(*this, panels), 0);
    const auto panel = upload(host, 7);
    const auto status = upload(std::vector<std::int32_t>{-1});

    backend->factor_panel(*stream, {.panel = panel.view, .status = flat(status)});

    EXPECT_EQ(download(status)(0, 0), 0);
    const auto got = download(panel);  // checks what lies between the rows
    for (std::int64_t r = 0; r < 90; ++r) {
      for (std::int64_t c = 0; c <= r; ++c) {
        ASSERT_NEAR(static_cast<double>(got(r, c)), static_cast<double>(panels[0].values(r, c)),
                    100 * tolerance<T>(90) * std::sqrt(h(r, r)));
      }
    }
  });
}

TEST_P(FactorPanel, StatusNamesTheLeadingMinorThatFails) {
  with_real_types([&]<class T>() {
    for (const double bad :
         {-3.0, 0.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      Matrix<double> h(50, 50);
      for (std::int64_t i = 0; i < 50; ++i) {
        h(i, i) = i == 36 ? bad : 2.0;
      }
      auto panels = cut_panels<T>(h, 20);  // [0, 10), [10, 30), [30, 50)

      EXPECT_EQ(factor_panels(*this, panels), 37) << bad;
    }
  });
}

TEST_P(FactorPanel, StatusNamesEveryPivotOfABlock) {
  constexpr std::int64_t n = 150;
  with_real_types([&]<class T>() {
    // First and last columns of what GPUs take at once: 4, 16, 128.
    for (const std::int64_t bad : {0, 1, 3, 4, 15, 16, 63, 64, 112, 127, 128, 149}) {
      Matrix<double> h(n, n);
      for (std::int64_t i = 0; i < n; ++i) {
        h(i, i) = i == bad ? 0.5 : 2.0;
        if (i < bad) {
          h(bad, i) = i + 1 == bad ? 1.5 : 0.0;  // leaves 0.5 − 1.125
        }
      }
      h(0, 0) = bad == 0 ? -0.5 : 2.0;
      auto panels = cut_panels<T>(h, n);

      EXPECT_EQ(factor_panels(*this, panels), bad + 1);
    }
  });
}

TEST_P(FactorPanel, StatusSeesNaNBesideTheDiagonal) {
  with_real_types([&]<class T>() {
    Matrix<double> h(8, 8);
    for (std::int64_t i = 0; i < 8; ++i) {
      h(i, i) = 1;
    }
    h(5, 2) = std::numeric_limits<double>::quiet_NaN();
    auto panels = cut_panels<T>(h, 8);

    EXPECT_EQ(factor_panels(*this, panels), 6);
  });
}

TEST_P(FactorPanel, RowsBelowAreSolvedAtEveryHeight) {
  constexpr std::int64_t w = 128;
  constexpr std::int64_t kinds = 7;  // of rows, again and again
  const auto h = reference::random_hessian(w, 200, 6);
  const auto expected = reference::random_normal(kinds, w, 7);
  const auto rows = reference::product(expected, reference::transposed(*reference::cholesky(h)));
  with_real_types([&]<class T>() {
    for (const std::int64_t below : {1, 41, 2500, 5000}) {
      Matrix<T> host(w + below, w);
      for (std::int64_t r = 0; r < w + below; ++r) {
        for (std::int64_t c = 0; c < w; ++c) {
          host(r, c) = static_cast<T>(r < w ? h(r, c) : rows((r - w) % kinds, c));
        }
      }
      const auto panel = upload(host, below % 2);
      const auto status = upload(std::vector<std::int32_t>{-1});

      backend->factor_panel(*stream, {.panel = panel.view, .status = flat(status)});

      EXPECT_EQ(download(status)(0, 0), 0);
      const auto got = download(panel);
      for (std::int64_t r = 0; r < below; ++r) {
        for (std::int64_t c = 0; c < w; ++c) {
          ASSERT_NEAR(static_cast<double>(got(w + r, c)), expected(r % kinds, c), 100 * tolerance<T>(w))
              << below << ": " << r << ", " << c;
        }
      }
    }
  });
}

TEST_P(FactorPanel, UpdateSubtractsTheProductBelowTheDiagonal) {
  const auto rows = reference::random_normal(530, 40, 3);
  const auto before = reference::random_normal(530, 270, 4);
  const auto product = reference::product(rows, reference::transposed(rows));
  with_real_types([&]<class T>() {
    const auto factored = upload(rows.as<T>(), 4);
    const auto target = upload(before.as<T>(), 6);

    backend->update_panel(*stream,
                          {.rows = factored.view, .top = factored.view.slice_rows(0, 270), .target = target.view});

    const auto got = download(target);
    for (std::int64_t r = 0; r < 530; ++r) {
      for (std::int64_t c = 0; c <= std::min<std::int64_t>(r, 269); ++c) {
        ASSERT_NEAR(static_cast<double>(got(r, c)), before(r, c) - product(r, c), 1e-4) << r << ", " << c;
      }
    }
  });
}

TEST_P(FactorPanel, IsRefusedWithGotAndExpected) {
  const auto panel = upload(Matrix<float>(4, 5));
  const auto rows = upload(Matrix<float>(6, 3));
  const auto target = upload(Matrix<float>(6, 4));
  const auto status = upload(std::vector<std::int32_t>(1));
  EXPECT_THAT(message_of([&] { backend->factor_panel(*stream, {.panel = panel.view, .status = flat(status)}); }),
              HasSubstr("the panel is [4, 5], expected no more columns than rows"));
  EXPECT_THAT(message_of([&] {
                backend->update_panel(*stream,
                                      {.rows = rows.view, .top = rows.view.slice_rows(0, 3), .target = target.view});
              }),
              HasSubstr("top is [3, 3], expected [4, 3]"));
}

}  // namespace
}  // namespace gptqd
