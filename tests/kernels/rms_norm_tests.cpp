#include <cmath>

#include "kernels/rms_norm.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RmsNorm : public OnDevice {
 protected:
  Matrix<float> run(const Matrix<float>& x, const std::vector<float>& weight, float epsilon, std::int64_t gap = 0) {
    const auto from = upload_rounded(x, gap);
    const auto w = upload(weight);
    const auto to = unset_compute(x.rows, x.cols, gap);
    backend->rms_norm(*stream, {.x = from.view, .weight = flat(w), .epsilon = epsilon, .y = to.view});
    return download(to);
  }
  void expect_matches_reference(std::int64_t tokens, std::int64_t runs, std::int64_t d, std::int64_t gap) {
    const auto x = rounded(normal(tokens, runs * d, 4, 3.0));
    const auto weight = normal(1, d, 5).data;

    const auto got = run(x, weight, 1e-6f, gap);

    SCOPED_TRACE(fmt::format("[{}, {} x {}], {} apart", tokens, runs, d, runs * d + gap));
    const auto expected = reference::rms_norm(x, weight, static_cast<double>(1e-6f));
    expect_near(got, expected, bound_of(expected, 2e-6, /*roundings=*/2.0));
  }
};

TEST_P(RmsNorm, MatchesReferenceAtOddSizes) {
  for (const auto& [tokens, d] : std::vector<std::array<std::int64_t, 2>>{{1, 1},
                                                                          {3, 15},
                                                                          {2, 16},
                                                                          {2, 17},
                                                                          {63, 64},
                                                                          {5, 257},
                                                                          {700, 65},
                                                                          {9, 256},
                                                                          {3, 1024},
                                                                          {3, 4104},
                                                                          {2, 8192},
                                                                          {2, 16384},
                                                                          {1, 40000}}) {
    for (const std::int64_t gap : {3, 8}) {
      expect_matches_reference(tokens, 1, d, gap);
    }
  }
}

TEST_P(RmsNorm, EachHeadByItself) {
  for (const auto& [runs, d] : std::vector<std::array<std::int64_t, 2>>{{2, 1}, {3, 7}, {5, 64}, {8, 128}, {2, 1500}}) {
    for (const std::int64_t gap : {0, 1}) {
      expect_matches_reference(19, runs, d, gap);
    }
  }
}

TEST_P(RmsNorm, EpsilonBoundsARowOfZeros) {
  EXPECT_THAT(run(filled(2, 20, 0.0f), std::vector<float>(20, 2.0f), 1e-6f).data, ::testing::Each(0.0f));
}

TEST_P(RmsNorm, SquaresDoNotOverflow) {
  const float large = computes_in_f32() ? 1e25f : 3e4f;

  const auto got = run(filled(1, 100, rounded(large)), std::vector<float>(100, 1.0f), 0.0f);

  EXPECT_THAT(got.data, ::testing::Each(::testing::FloatNear(1.0f, 1e-6f)));
}

TEST_P(RmsNorm, NaNStaysInItsRun) {
  auto x = normal(2, 20, 1);
  x(0, 3) = std::nanf("");

  const auto got = run(x, std::vector<float>(10, 1.0f), 1e-6f);

  for (std::int64_t c = 0; c < 20; ++c) {
    EXPECT_EQ(std::isnan(got(0, c)), c < 10);
    EXPECT_FALSE(std::isnan(got(1, c)));
  }
}

TEST_P(RmsNorm, InPlace) {
  const auto x = normal(7, 66, 1);
  const std::vector<float> weight(33, 1.5f);
  const auto expected = run(x, weight, 1e-6f);
  const auto both = upload_rounded(x);
  const auto w = upload(weight);

  backend->rms_norm(*stream, {.x = both.view, .weight = flat(w), .epsilon = 1e-6f, .y = both.view});

  expect_identical(download(both), expected);
}

TEST_P(RmsNorm, BitsDoNotDependOnThreads) {
  const auto x = normal(500, 100, 1);
  const auto weight = normal(1, 50, 2).data;
  const auto first = run(x, weight, 1e-6f);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(x, weight, 1e-6f), first);
  }
}

TEST_P(RmsNorm, NoTokens) { EXPECT_TRUE(run(normal(0, 4, 1), {1, 2, 3, 4}, 1e-6f).data.empty()); }

TEST_P(RmsNorm, RefusesWhatDoesNotFit) {
  const auto x = upload(normal(2, 4, 1));
  const auto y = upload(normal(2, 4, 1));
  const auto three = upload(std::vector<float>{1, 2, 3});
  const auto two = upload(std::vector<float>{1, 2});
  const auto message = [&](RmsNormArgs args) { return error_message([&] { backend->rms_norm(*stream, args); }); };
  EXPECT_THAT(message({.x = x.view, .weight = flat(three), .y = y.view}),
              AllOf(HasSubstr("rms_norm: x is [2, 4]"), HasSubstr("runs of 3 columns")));
  EXPECT_THAT(message({.x = x.view, .weight = flat(two), .epsilon = -1.0f, .y = y.view}), HasSubstr("epsilon = -1"));
  EXPECT_THAT(message({.x = x.view, .weight = flat(two), .y = y.view.slice_cols(0, 2)}),
              AllOf(HasSubstr("y is [2, 2]"), HasSubstr("expected [2, 4]")));
  EXPECT_THAT(message({.x = x.view.slice_cols(0, 2), .weight = flat(two), .y = x.view.slice_cols(1, 2)}),
              HasSubstr("overlaps"));
}

INSTANTIATE_TEST_SUITE_P(, RmsNorm, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
