#include <cmath>

#include "kernels/layer_norm.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LayerNorm : public OnDevice {
 protected:
  Matrix<float> run(const Matrix<float>& x, const std::vector<float>& weight, const std::vector<float>& bias,
                    float epsilon, std::int64_t gap = 0) {
    const auto from = upload_rounded(x, gap);
    const auto w = upload(weight);
    const auto b = upload(bias);
    const auto to = unset_compute(x.rows, x.cols, gap);
    backend->layer_norm(*stream,
                        {.x = from.view, .weight = flat(w), .bias = flat(b), .epsilon = epsilon, .y = to.view});
    return download(to);
  }
};

TEST_P(LayerNorm, MatchesReferenceAtOddSizes) {
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
      const auto x = rounded(normal(tokens, d, 4, 3.0));
      const auto weight = normal(1, d, 5).data;
      const auto bias = normal(1, d, 6).data;

      const auto got = run(x, weight, bias, 1e-5f, gap);

      SCOPED_TRACE(fmt::format("[{}, {}], {} apart", tokens, d, d + gap));
      const auto expected = reference::layer_norm(x, weight, bias, static_cast<double>(1e-5f));
      expect_near(got, expected, bound_of(expected, 2e-5));
    }
  }
}

TEST_P(LayerNorm, KeepsItsAccuracyFarFromZero) {
  auto x = normal(2, 576, 4, computes_in_f32() ? 1.0 : 100.0);
  for (auto& value : x.data) {
    value = rounded(value + 1000.0f);
  }
  const std::vector<float> ones(576, 1.0f);
  const std::vector<float> zeros(576, 0.0f);

  // Within what the fp32 subtraction of the mean, 1000, can be off: half an ulp of it.
  const auto expected = reference::layer_norm(x, ones, zeros, static_cast<double>(1e-5f));
  expect_near(run(x, ones, zeros, 1e-5f), expected, bound_of(expected, 4e-5));
}

TEST_P(LayerNorm, EpsilonBoundsAConstantRow) {
  const auto got = run(filled(2, 20, 3.0f), std::vector<float>(20, 2.0f), std::vector<float>(20, 0.5f), 1e-5f);

  EXPECT_THAT(got.data, ::testing::Each(0.5f));
}

TEST_P(LayerNorm, InPlace) {
  const auto x = normal(7, 33, 1);
  const std::vector<float> weight(33, 1.5f);
  const std::vector<float> bias(33, -1.0f);
  const auto expected = run(x, weight, bias, 1e-5f);
  const auto both = upload_rounded(x);
  const auto w = upload(weight);
  const auto b = upload(bias);

  backend->layer_norm(*stream, {.x = both.view, .weight = flat(w), .bias = flat(b), .epsilon = 1e-5f, .y = both.view});

  expect_identical(download(both), expected);
}

TEST_P(LayerNorm, BitsDoNotDependOnThreads) {
  const auto x = normal(500, 100, 1);
  const auto weight = normal(1, 100, 2).data;
  const auto first = run(x, weight, weight, 1e-5f);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(x, weight, weight, 1e-5f), first);
  }
}

TEST_P(LayerNorm, RefusesWhatDoesNotFit) {
  const auto x = upload(normal(2, 4, 1));
  const auto y = upload(normal(2, 4, 1));
  const auto three = upload(std::vector<float>{1, 2, 3});
  const auto four = upload(std::vector<float>{1, 2, 3, 4});
  EXPECT_THAT(error_message([&] {
                backend->layer_norm(*stream, {.x = x.view, .weight = flat(three), .bias = flat(four), .y = y.view});
              }),
              AllOf(HasSubstr("layer_norm: weight is [3]"), HasSubstr("expected [4]")));
  EXPECT_THAT(error_message([&] {
                backend->layer_norm(
                    *stream, {.x = x.view, .weight = flat(four), .bias = flat(four), .epsilon = -1.0f, .y = y.view});
              }),
              HasSubstr("epsilon = -1"));
  EXPECT_THAT(
      error_message([&] {
        backend->layer_norm(
            *stream,
            {.x = x.view.slice_cols(0, 3), .weight = flat(three), .bias = flat(three), .y = x.view.slice_cols(1, 3)});
      }),
      HasSubstr("overlaps"));
}

INSTANTIATE_TEST_SUITE_P(, LayerNorm, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
