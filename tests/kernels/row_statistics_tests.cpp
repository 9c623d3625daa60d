#include <limits>

#include "kernels/row_statistics.hpp"
#include "tests/kernels/device_tensors.hpp"

namespace gptqd::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Statistics {
  std::vector<double> damping_share;
  std::vector<std::int32_t> saturated;
  std::vector<std::int32_t> non_finite;
  std::vector<float> min_scale;
  std::vector<float> max_scale;
};

class RowStatistics : public OnDevice {
 protected:
  template <class T>
  Statistics run(const Matrix<T>& delta, const Matrix<std::uint8_t>& codes, const std::vector<std::int32_t>& group,
                 const Matrix<float>& scales, const std::vector<double>& extra, int bits = 4) {
    const auto d = upload(delta, 3);
    const auto c = upload(codes, 1);
    const auto g = upload(group);
    const auto s = upload(scales, 2);
    const auto e = upload(extra);
    const auto rows = static_cast<std::size_t>(delta.rows);
    const auto share = upload(std::vector<double>(rows, -1.0));
    const auto saturated = upload(std::vector<std::int32_t>(rows, -1));
    const auto non_finite = upload(std::vector<std::int32_t>(rows, -1));
    const auto min_scale = upload(std::vector<float>(rows, -1.0f));
    const auto max_scale = upload(std::vector<float>(rows, -1.0f));
    RowStatisticsArgs args{.bits = bits,
                           .delta = ConstAnyView<2>(d.view),
                           .codes = c.view,
                           .group = flat(g),
                           .scales = s.view,
                           .damping_share = flat(share),
                           .saturated = flat(saturated),
                           .non_finite = flat(non_finite),
                           .min_scale = flat(min_scale),
                           .max_scale = flat(max_scale)};
    if (!extra.empty()) {
      args.extra = flat(e);
    }
    backend->row_statistics(*stream, args);
    return {download(share).data, download(saturated).data, download(non_finite).data, download(min_scale).data,
            download(max_scale).data};
  }
};

TEST_P(RowStatistics, SharesAreWeightedSquares) {
  const std::int64_t n = 1030;
  const auto delta = normal(5, n, 1);
  std::vector<double> extra;
  for (std::int64_t a = 0; a < n; ++a) {
    extra.push_back(0.01 * static_cast<double>(a % 7));
  }

  const auto got =
      run(delta, filled<std::uint8_t>(5, n, 7), std::vector<std::int32_t>(n, 0), filled(5, 1, 1.0f), extra);

  for (std::int64_t r = 0; r < 5; ++r) {
    double expected = 0;
    for (std::int64_t a = 0; a < n; ++a) {
      expected += extra[static_cast<std::size_t>(a)] * std::pow(static_cast<double>(delta(r, a)), 2);
    }
    EXPECT_NEAR(got.damping_share[static_cast<std::size_t>(r)], expected, 1e-12 * expected);
  }
}

TEST_P(RowStatistics, WithoutExtraTheShareIsZero) {
  const auto got = run(filled(2, 3, 1.0f), filled<std::uint8_t>(2, 3, 1), {0, 0, 0}, filled(2, 1, 1.0f), {});

  EXPECT_THAT(got.damping_share, ElementsAre(0.0, 0.0));
}

TEST_P(RowStatistics, CodesAtAnEndFarFromTheirWeightsAreSaturated) {
  Matrix<double> delta(1, 6);
  delta.data = {0.51, -0.51, 0.5, 0.51, 0.9, -1.1};
  Matrix<std::uint8_t> codes(1, 6);
  codes.data = {0, 7, 7, 3, 0, 7};
  Matrix<float> scales(1, 2);
  scales.data = {1.0f, 2.0f};

  // The fourth stands inside the range; half a step of the last two is 1.
  const auto got = run(delta, codes, {0, 0, 0, 0, 1, 1}, scales, {}, 3);

  EXPECT_THAT(got.saturated, ElementsAre(3));
}

TEST_P(RowStatistics, InfinitiesAndNaNAreCounted) {
  Matrix<float> delta(2, 3);
  delta.data = {0.0f, std::nanf(""), -std::numeric_limits<float>::infinity(), 1.0f, 2.0f, 3.0f};

  const auto got = run(delta, filled<std::uint8_t>(2, 3, 1), {0, 0, 0}, filled(2, 1, 1.0f), {});

  EXPECT_THAT(got.non_finite, ElementsAre(2, 0));
}

TEST_P(RowStatistics, TheLeastAndTheLargestScaleOfEachRow) {
  const std::int64_t groups = 601;
  auto scales = filled(3, groups, 2.0f);
  scales(0, 0) = 1.0f;
  scales(0, groups - 1) = 3.0f;
  scales(1, 300) = 5.0f;
  scales(1, 301) = 0.5f;

  const auto got = run(filled(3, 2, 1.0f), filled<std::uint8_t>(3, 2, 1), {0, 1}, scales, {});

  EXPECT_THAT(got.min_scale, ElementsAre(1.0f, 0.5f, 2.0f));
  EXPECT_THAT(got.max_scale, ElementsAre(3.0f, 5.0f, 2.0f));
}

TEST_P(RowStatistics, RefusesWhatDoesNotFit) {
  EXPECT_THAT(error_message([&] {
                run(filled(2, 3, 1.0f), filled<std::uint8_t>(2, 3, 1), {0, 0, 0}, filled(2, 0, 1.0f), {});
              }),
              HasSubstr("scales is [2, 0], expected [2, 1]"));
  EXPECT_THAT(error_message([&] {
                run(filled(2, 3, 1.0f), filled<std::uint8_t>(2, 3, 1), {0, 0}, filled(2, 1, 1.0f), {});
              }),
              HasSubstr("group is [2], expected [3]"));
}

INSTANTIATE_TEST_SUITE_P(, RowStatistics, ::testing::ValuesIn(available_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
