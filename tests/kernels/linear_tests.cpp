#include <cmath>

#include "kernels/linear.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Problem {
  Matrix<float> x;
  Matrix<float> weight;
  std::vector<float> bias;
};

Problem problem(std::int64_t tokens, std::int64_t in, std::int64_t out) {
  return {normal(tokens, in, 1), normal(out, in, 2), normal(1, out, 3).data};
}

/// Rounding errors of a sum of n products, whatever its order.
Matrix<double> tolerance(const Problem& p) {
  auto bound = reference::linear_magnitude(p.x, p.weight, p.bias);
  for (auto& value : bound.data) {
    value *= static_cast<double>(p.x.cols + 2) * 0x1p-24;
  }
  return bound;
}

class Linear : public OnDevice {
 protected:
  struct Options {
    bool bias = true;
    Activation activation = Activation::none;
    bool accumulate = false;
    std::int64_t gap = 0;
  };
  Matrix<float> run(const Problem& p, const Matrix<float>& before, const Options& options) {
    const auto x = upload(p.x, options.gap);
    const auto weight = upload(p.weight, options.gap);
    const auto bias = upload(p.bias);
    const auto y = upload(before, options.gap);
    LinearArgs args{.x = x.view,
                    .weight = weight.view,
                    .bias = std::nullopt,
                    .y = y.view,
                    .activation = options.activation,
                    .accumulate = options.accumulate};
    if (options.bias) {
      args.bias = flat(bias);
    }
    backend->linear(*stream, args);
    return download(y);
  }
  Matrix<float> run(const Problem& p, const Options& options) {
    return run(p, filled(p.x.rows, p.weight.rows, std::nanf("")), options);
  }
};

TEST_P(Linear, MatchesReferenceAtOddSizes) {
  for (const auto& [tokens, in, out] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1},
                                                                                {1, 64, 63},
                                                                                {63, 65, 1},
                                                                                {64, 1, 65},
                                                                                {65, 257, 64},
                                                                                {257, 63, 289},
                                                                                {513, 17, 577},
                                                                                {1025, 5, 3}}) {
    const auto p = problem(tokens, in, out);

    const auto got = run(p, {});

    SCOPED_TRACE(fmt::format("[{}, {}] -> {}", tokens, in, out));
    expect_near(got, reference::linear(p.x, p.weight, p.bias), tolerance(p));
  }
}

TEST_P(Linear, WithoutBias) {
  auto p = problem(65, 33, 70);

  const auto got = run(p, {.bias = false});

  p.bias.clear();
  expect_near(got, reference::linear(p.x, p.weight, p.bias), tolerance(p));
}

TEST_P(Linear, RowsMayBeApart) {
  const auto p = problem(130, 31, 291);

  const auto got = run(p, {.gap = 5});

  expect_near(got, reference::linear(p.x, p.weight, p.bias), tolerance(p));
}

TEST_P(Linear, ReluAfterTheBias) {
  const auto p = problem(65, 20, 300);

  const auto got = run(p, {.activation = Activation::relu});

  auto expected = reference::linear(p.x, p.weight, p.bias);
  for (auto& value : expected.data) {
    value = std::max(value, 0.0);
  }
  expect_near(got, expected, tolerance(p));
}

TEST_P(Linear, ReluKeepsNaN) {
  auto p = problem(1, 2, 3);
  p.x(0, 0) = std::nanf("");

  EXPECT_THAT(run(p, {.activation = Activation::relu}).data, ::testing::Each(::testing::IsNan()));
}

TEST_P(Linear, AccumulateAddsToWhatIsThere) {
  for (const bool bias : {true, false}) {
    auto p = problem(65, 40, 290);
    const auto before = normal(65, 290, 9);

    const auto got = run(p, before, {.bias = bias, .accumulate = true});

    if (!bias) {
      p.bias.clear();
    }
    auto expected = reference::linear(p.x, p.weight, p.bias);
    auto bound = tolerance(p);
    for (std::size_t i = 0; i < expected.data.size(); ++i) {
      expected.data[i] += static_cast<double>(before.data[i]);
      bound.data[i] += 0x1p-22 * std::abs(static_cast<double>(before.data[i]));
    }
    expect_near(got, expected, bound);
  }
}

TEST_P(Linear, NoTokensAndNoInputs) {
  EXPECT_TRUE(run(problem(0, 4, 5), {}).data.empty());
  const auto p = problem(2, 0, 3);
  EXPECT_EQ(run(p, {}).data, (std::vector<float>{p.bias[0], p.bias[1], p.bias[2], p.bias[0], p.bias[1], p.bias[2]}));
}

TEST_P(Linear, BitsDoNotDependOnThreads) {
  const auto p = problem(1100, 96, 600);
  const auto first = run(p, {});
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(p, {}), first);
  }
}

TEST_P(Linear, WholeTilesOfRowsHaveTheSameBitsAlone) {
  constexpr std::int64_t tile = 512;
  const auto whole = problem(2 * tile + 100, 200, 300);
  auto part = whole;
  part.x = Matrix<float>(tile, whole.x.cols);
  std::copy_n(whole.x.data.begin() + tile * whole.x.cols, tile * whole.x.cols, part.x.data.begin());

  const auto got = run(part, {});

  auto expected = run(whole, {});
  expected.data.erase(expected.data.begin(), expected.data.begin() + tile * 300);
  expected.data.resize(static_cast<std::size_t>(tile * 300));
  expected.rows = tile;
  expect_identical(got, expected);
}

TEST_P(Linear, RefusesWhatDoesNotFit) {
  const auto x = upload(normal(2, 4, 1));
  const auto weight = upload(normal(3, 5, 1));
  const auto y = upload(normal(2, 3, 1));
  EXPECT_THAT(
      error_message([&] { backend->linear(*stream, {.x = x.view, .weight = weight.view, .bias = {}, .y = y.view}); }),
      AllOf(HasSubstr("linear"), HasSubstr("weight is [3, 5]"), HasSubstr("expected [3, 4]")));
  const auto fitting = upload(normal(3, 4, 1));
  const auto bias = upload(std::vector<float>{1, 2});
  EXPECT_THAT(error_message([&] {
                backend->linear(*stream, {.x = x.view, .weight = fitting.view, .bias = flat(bias), .y = y.view});
              }),
              AllOf(HasSubstr("bias is [2]"), HasSubstr("expected [3]")));
  EXPECT_THAT(error_message([&] {
                backend->linear(*stream, {.x = x.view,
                                          .weight = fitting.view,
                                          .bias = {},
                                          .y = y.view,
                                          .activation = Activation::relu,
                                          .accumulate = true});
              }),
              HasSubstr("accumulate"));
  const auto square = upload(normal(4, 4, 1));
  EXPECT_THAT(
      error_message([&] { backend->linear(*stream, {.x = x.view, .weight = square.view, .bias = {}, .y = x.view}); }),
      HasSubstr("y [2, 4] overlaps x [2, 4]"));
}

TEST_P(Linear, RefusesOtherElementTypes) {
  const auto half = backend->allocate(1024);
  const auto view = [&](std::int64_t offset, Shape<2> shape) { return half.any_view<2>(DType::f16, shape, offset); };
  EXPECT_THAT(error_message([&] {
                backend->linear(*stream, {.x = view(0, {2, 4}),
                                          .weight = view(256, {3, 4}),
                                          .bias = {},
                                          .y = half.any_view<2>(DType::f32, {2, 3}, 512)});
              }),
              AllOf(HasSubstr("y is F32"), HasSubstr("expected F16")));
  const DType compute = backend->compute_dtype(DType::f16);
  if (compute != DType::f16) {
    EXPECT_THAT(error_message([&] {
                  backend->linear(
                      *stream, {.x = view(0, {2, 4}), .weight = view(256, {3, 4}), .bias = {}, .y = view(512, {2, 3})});
                }),
                AllOf(HasSubstr("got F16"), HasSubstr("convert first")));
  }
}

INSTANTIATE_TEST_SUITE_P(, Linear, ::testing::ValuesIn(available_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
