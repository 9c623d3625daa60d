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

class Linear : public OnDevice {
 protected:
  struct Options {
    bool bias = true;
    Activation activation = Activation::none;
    bool accumulate = false;
    std::int64_t gap = 0;
  };
  Problem rounded_problem(std::int64_t tokens, std::int64_t in, std::int64_t out) const {
    const auto p = problem(tokens, in, out);
    return {rounded(p.x), rounded(p.weight), rounded(p.bias)};
  }

  /// Rounding errors of a sum of n products, whatever its order; tensor cores cut off where others round.
  Matrix<double> tolerance(const Problem& p) const {
    auto bound = reference::linear_magnitude(p.x, p.weight, p.bias);
    for (auto& value : bound.data) {
      value *= static_cast<double>(p.x.cols + 2) * (computes_in_f32() ? 0x1p-24 : 0x1p-22);
    }
    return bound;
  }
  void expect_matches(const Matrix<float>& got, const Problem& p, Activation activation = Activation::none) const {
    const auto expected = converted<double>(reference::linear(p.x, p.weight, p.bias),
                                            [&](double x) { return reference::activate(activation, x); });
    auto bound = tolerance(p);
    for (std::size_t i = 0; i < bound.data.size() && activation != Activation::none; ++i) {
      // Slopes of up to 1.13, and the function's own error.
      bound.data[i] = 1.13 * bound.data[i] + 0x1p-22 * (1.0 + std::abs(expected.data[i]));
    }
    expect_near(got, expected, bound_of(expected, bound));
  }

  Matrix<float> run(const Problem& p, const Matrix<float>& before, const Options& options) {
    const auto x = upload_rounded(p.x, options.gap);
    const auto weight = upload_rounded(p.weight, options.gap);
    const auto bias = upload(p.bias);
    const auto y = upload_rounded(before, options.gap);
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
                                                                                {1025, 5, 3},
                                                                                {1, 8, 8},
                                                                                {129, 72, 136},
                                                                                {300, 512, 256}}) {
    const auto p = rounded_problem(tokens, in, out);

    const auto got = run(p, {});

    SCOPED_TRACE(fmt::format("[{}, {}] -> {}", tokens, in, out));
    expect_matches(got, p);
  }
}

TEST_P(Linear, WithoutBias) {
  for (const std::int64_t in : {33, 40}) {
    auto p = rounded_problem(65, in, 72);

    const auto got = run(p, {.bias = false});

    p.bias.clear();
    expect_matches(got, p);
  }
}

TEST_P(Linear, RowsMayBeApart) {
  for (const std::int64_t gap : {5, 8}) {
    const auto p = rounded_problem(130, 32, 296);

    expect_matches(run(p, {.gap = gap}), p);
  }
}

TEST_P(Linear, ActivationsFollowTheBias) {
  for (const auto activation : {Activation::relu, Activation::silu, Activation::gelu_tanh}) {
    for (const std::int64_t in : {7, 24}) {
      for (const bool bias : {true, false}) {
        SCOPED_TRACE(fmt::format("{}, {} inputs, bias {}", name_of(activation), in, bias));
        auto p = rounded_problem(65, in, 296);

        const auto got = run(p, {.bias = bias, .activation = activation});

        if (!bias) {
          p.bias.clear();
        }
        expect_matches(got, p, activation);
      }
    }
  }
}

TEST_P(Linear, ActivationsKeepTheirLimits) {
  // Sums of −10,000 and 10,000, where an exponential over- or underflows.
  Problem p{filled(1, 8, 0.0f), filled(8, 8, 0.0f), std::vector<float>(8, 0.0f)};
  p.x(0, 0) = 100.0f;
  p.weight(0, 0) = -100.0f;
  p.weight(1, 0) = 100.0f;
  for (const auto activation : {Activation::relu, Activation::silu, Activation::gelu_tanh}) {
    const auto got = run(p, {.activation = activation});

    EXPECT_EQ(std::abs(got(0, 0)), 0.0f) << name_of(activation);
    EXPECT_EQ(got(0, 1), rounded(10000.0f)) << name_of(activation);
    EXPECT_EQ(got(0, 2), 0.0f) << name_of(activation);
  }
}

TEST_P(Linear, ActivationsKeepNaN) {
  for (const auto activation : {Activation::relu, Activation::silu, Activation::gelu_tanh}) {
    for (const std::int64_t in : {3, 16}) {
      SCOPED_TRACE(fmt::format("{}, {} inputs", name_of(activation), in));
      auto p = rounded_problem(1, in, 16);
      p.x(0, 0) = std::nanf("");

      EXPECT_THAT(run(p, {.activation = activation}).data, ::testing::Each(::testing::IsNan()));
      EXPECT_THAT(run(p, {.bias = false, .activation = activation}).data, ::testing::Each(::testing::IsNan()));
    }
  }
}

TEST_P(Linear, AccumulateAddsToWhatIsThere) {
  for (const std::int64_t in : {41, 40}) {
    for (const bool bias : {true, false}) {
      auto p = rounded_problem(65, in, 296);
      const auto before = rounded(normal(65, 296, 9));

      const auto got = run(p, before, {.bias = bias, .accumulate = true});

      if (!bias) {
        p.bias.clear();
      }
      auto expected = reference::linear(p.x, p.weight, p.bias);
      auto bound = tolerance(p);
      for (std::size_t i = 0; i < expected.data.size(); ++i) {
        expected.data[i] += static_cast<double>(before.data[i]);
        const double there = std::abs(static_cast<double>(before.data[i]));
        const double bias_of_column = bias ? std::abs(double{p.bias[i % 296]}) : 0.0;
        // cuBLAS may round to the results' type before it has added all of them.
        bound.data[i] += 0x1p-22 * there + roundoff() * (std::abs(expected.data[i]) + bias_of_column + there);
      }
      expect_near(got, expected, bound_of(expected, bound));
    }
  }
}

TEST_P(Linear, NoTokensAndNoInputs) {
  EXPECT_TRUE(run(rounded_problem(0, 4, 5), {}).data.empty());
  const auto p = rounded_problem(2, 0, 3);
  EXPECT_EQ(run(p, {}).data, (std::vector<float>{p.bias[0], p.bias[1], p.bias[2], p.bias[0], p.bias[1], p.bias[2]}));
}

TEST_P(Linear, BitsDoNotDependOnThreads) {
  const auto p = rounded_problem(1100, 96, 600);
  const auto first = run(p, {});
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(p, {}), first);
  }
}

TEST_P(Linear, WholeTilesOfRowsHaveTheSameBitsAlone) {
  if (GetParam().name != "cpu") {
    GTEST_SKIP() << "cuBLAS chooses its kernel by the whole shape";
  }
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

INSTANTIATE_TEST_SUITE_P(, Linear, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
