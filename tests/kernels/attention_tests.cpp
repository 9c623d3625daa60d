#include <cmath>

#include "kernels/attention.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using reference::AttentionShape;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Inputs {
  Matrix<float> q;
  Matrix<float> k;
  Matrix<float> v;
};

Inputs inputs(std::int64_t samples, const AttentionShape& shape, double deviation = 1.0) {
  const auto rows = samples * shape.tokens_per_sample;
  return {normal(rows, shape.heads * shape.head_dim, 1, deviation),
          normal(rows, shape.kv_heads * shape.head_dim, 2, deviation),
          normal(rows, shape.kv_heads * shape.head_dim, 3)};
}

class Attention : public OnDevice {
 protected:
  Inputs rounded_inputs(std::int64_t samples, const AttentionShape& shape, double deviation = 1.0) const {
    const auto in = inputs(samples, shape, deviation);
    return {rounded(in.q), rounded(in.k), rounded(in.v)};
  }

  /// Arguments without tensors.
  static AttentionArgs arguments(const AttentionShape& shape) {
    AttentionArgs args;
    args.tokens_per_sample = shape.tokens_per_sample;
    args.heads = shape.heads;
    args.kv_heads = shape.kv_heads;
    args.head_dim = shape.head_dim;
    args.scale = static_cast<float>(shape.scale);
    args.window = shape.window;
    return args;
  }

  Matrix<float> run(const Inputs& in, const AttentionShape& shape, std::int64_t gap = 0) {
    const auto q = upload_rounded(in.q, gap);
    const auto k = upload_rounded(in.k, gap);
    const auto v = upload_rounded(in.v, gap);
    const auto slopes = upload(shape.alibi_slopes);
    const auto out = unset_compute(in.q.rows, in.q.cols, gap);
    auto args = arguments(shape);
    args.q = q.view;
    args.k = k.view;
    args.v = v.view;
    args.out = out.view;
    if (!shape.alibi_slopes.empty()) {
      args.alibi_slopes = flat(slopes);
    }
    backend->attention(*stream, args);
    return download(out);
  }

  /// In fp32 `bound`; the weights of a half type's tensor cores are rounded too, against values of up to 4.
  void expect_matches_reference(std::int64_t samples, const AttentionShape& shape, std::int64_t gap = 0,
                                double deviation = 1.0, double bound = 3e-6) {
    const auto in = rounded_inputs(samples, shape, deviation);
    const auto expected = reference::attention(in.q, in.k, in.v, shape);
    expect_near(run(in, shape, gap), expected,
                bound_of(expected, bound + (computes_in_f32() ? 0.0 : 4.0 * roundoff())));
  }
};

TEST_P(Attention, MatchesReferenceAtOddSizes) {
  for (const std::int64_t head_dim : {20, 24, 64}) {
    for (const std::int64_t tokens : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257}) {
      SCOPED_TRACE(fmt::format("{} tokens, heads of {}", tokens, head_dim));
      expect_matches_reference(
          2, {.tokens_per_sample = tokens, .heads = 3, .kv_heads = 3, .head_dim = head_dim, .scale = 0.25});
    }
  }
}

TEST_P(Attention, HeadsOfEveryWidth) {
  for (const std::int64_t head_dim : {1, 7, 8, 32, 40, 64, 72, 80, 96, 104, 128, 136, 192, 200, 255, 256}) {
    SCOPED_TRACE(head_dim);
    expect_matches_reference(1,
                             {.tokens_per_sample = 150,
                              .heads = 2,
                              .kv_heads = 1,
                              .head_dim = head_dim,
                              .scale = 1.0 / std::sqrt(static_cast<double>(head_dim))},
                             0, 1.0, 6e-6);
  }
}

TEST_P(Attention, LongSamples) {
  const auto check = [this](std::int64_t samples, std::int64_t tokens, std::int64_t head_dim, std::int64_t window) {
    SCOPED_TRACE(fmt::format("{} tokens, heads of {}, window {}", tokens, head_dim, window));
    expect_matches_reference(samples, {.tokens_per_sample = tokens,
                                       .heads = 1,
                                       .kv_heads = 1,
                                       .head_dim = head_dim,
                                       .scale = 1.0 / std::sqrt(static_cast<double>(head_dim)),
                                       .alibi_slopes = {},
                                       .window = window});
  };
  check(2, 1000, 64, 0);
  check(1, 1000, 80, 0);
  check(1, 1000, 96, 300);
  check(1, 1000, 128, 0);
  check(1, 2048, 64, 0);
  check(1, 2048, 128, 700);
}

TEST_P(Attention, HeadsMayShareKeysAndValues) {
  for (const std::int64_t head_dim : {8, 64}) {
    expect_matches_reference(3,
                             {.tokens_per_sample = 70, .heads = 6, .kv_heads = 2, .head_dim = head_dim, .scale = 0.25});
  }
}

TEST_P(Attention, RowsMayBeApart) {
  expect_matches_reference(2, {.tokens_per_sample = 33, .heads = 2, .kv_heads = 1, .head_dim = 7, .scale = 0.5}, 9);
  expect_matches_reference(2, {.tokens_per_sample = 33, .heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 0.5}, 8);
  for (const std::int64_t gap : {2, 8}) {
    expect_matches_reference(2, {.tokens_per_sample = 33, .heads = 2, .kv_heads = 1, .head_dim = 64, .scale = 0.1},
                             gap);
    expect_matches_reference(1, {.tokens_per_sample = 1, .heads = 2, .kv_heads = 1, .head_dim = 80, .scale = 0.1}, gap);
  }
}

TEST_P(Attention, AScaleOfAnySign) {
  for (const double scale : {-0.5, 0.0}) {
    for (const std::int64_t head_dim : {8, 64}) {
      expect_matches_reference(
          1, {.tokens_per_sample = 70, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = scale});
    }
  }
}

TEST_P(Attention, AWindowHidesWhatLiesFurtherBack) {
  // Below, at and above the sizes of tiles, within one and across several; larger than the sample.
  for (const std::int64_t window : {1, 2, 31, 32, 33, 63, 64, 65, 100, 128, 129, 199, 299, 300, 301, 5000}) {
    for (const std::int64_t head_dim : {7, 16, 64}) {
      SCOPED_TRACE(fmt::format("window {}, heads of {}", window, head_dim));
      expect_matches_reference(2, {.tokens_per_sample = 300,
                                   .heads = 2,
                                   .kv_heads = 1,
                                   .head_dim = head_dim,
                                   .scale = 0.25,
                                   .alibi_slopes = {},
                                   .window = window});
    }
  }
}

TEST_P(Attention, AWindowAsLargeAsTheSampleChangesNothing) {
  for (const std::int64_t head_dim : {16, 128}) {
    AttentionShape shape{.tokens_per_sample = 200, .heads = 2, .kv_heads = 1, .head_dim = head_dim, .scale = 0.25};
    const auto in = rounded_inputs(2, shape);
    const auto all = run(in, shape);

    shape.window = 200;
    expect_identical(run(in, shape), all);
    shape.window = std::int64_t{1} << 40;
    expect_identical(run(in, shape), all);
  }
}

TEST_P(Attention, WhatAWindowHidesChangesNothing) {
  for (const std::int64_t head_dim : {8, 80}) {
    SCOPED_TRACE(head_dim);
    const AttentionShape shape{.tokens_per_sample = 200,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = head_dim,
                               .scale = 0.3,
                               .alibi_slopes = {},
                               .window = 50};
    auto in = rounded_inputs(1, shape);
    const auto before = run(in, shape);
    for (std::int64_t c = 0; c < head_dim; ++c) {
      in.k(30, c) = 100.0f * in.q(79, c);
      in.v(30, c) = 1e3f;
    }

    const auto after = run(in, shape);

    const auto seen = 80 * head_dim;
    EXPECT_TRUE(std::equal(before.data.begin() + seen, before.data.end(), after.data.begin() + seen));
    EXPECT_NE(before(79, 0), after(79, 0));
  }
}

TEST_P(Attention, AlibiLowersScoresWithDistance) {
  for (const std::int64_t head_dim : {12, 16, 64, 80}) {
    for (const std::int64_t window : {0, 40}) {
      SCOPED_TRACE(fmt::format("window {}, heads of {}", window, head_dim));
      expect_matches_reference(2,
                               {.tokens_per_sample = 150,
                                .heads = 6,
                                .kv_heads = 2,
                                .head_dim = head_dim,
                                .scale = 0.25,
                                .alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0f, 0.7071068f, 3.0f},
                                .window = window},
                               0, 1.0, 2e-5);
    }
  }
}

TEST_P(Attention, HeadsOfQueriesKeysAndValuesMayAlternateInOneBuffer) {
  for (const std::int64_t head_dim : {8, 80}) {
    const AttentionShape shape{.tokens_per_sample = 70, .heads = 4, .kv_heads = 4, .head_dim = head_dim, .scale = 0.25};
    const auto in = rounded_inputs(2, shape);
    const std::int64_t stride = 3 * head_dim;
    Matrix<float> fused(140, 4 * stride);
    for (std::int64_t r = 0; r < 140; ++r) {
      for (std::int64_t h = 0; h < 4; ++h) {
        for (std::int64_t c = 0; c < head_dim; ++c) {
          fused(r, h * stride + c) = in.q(r, h * head_dim + c);
          fused(r, h * stride + head_dim + c) = in.k(r, h * head_dim + c);
          fused(r, h * stride + 2 * head_dim + c) = in.v(r, h * head_dim + c);
        }
      }
    }
    const auto all = upload_rounded(fused);
    const auto out = unset_compute(140, 4 * head_dim);
    auto args = arguments(shape);
    args.head_stride = stride;
    args.q = all.view.slice_cols(0, 3 * stride + head_dim);
    args.k = all.view.slice_cols(head_dim, 3 * stride + head_dim);
    args.v = all.view.slice_cols(2 * head_dim, 3 * stride + head_dim);
    args.out = out.view;

    backend->attention(*stream, args);

    expect_identical(download(out), run(in, shape));
  }
}

TEST_P(Attention, TakesSlicesOfOneBuffer) {
  const AttentionShape shape{.tokens_per_sample = 20, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 0.5};
  const auto in = rounded_inputs(1, shape);
  Matrix<float> fused(20, 32);
  for (std::int64_t r = 0; r < 20; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      fused(r, c) = in.q(r, c);
      fused(r, 8 + c) = in.k(r, c);
      fused(r, 16 + c) = in.v(r, c);
    }
  }
  const auto all = upload_rounded(fused);
  auto args = arguments(shape);
  args.q = all.view.slice_cols(0, 8);
  args.k = all.view.slice_cols(8, 8);
  args.v = all.view.slice_cols(16, 8);
  args.out = all.view.slice_cols(24, 8);

  backend->attention(*stream, args);

  const auto got = download(all);
  const auto expected = run(in, shape);
  for (std::int64_t r = 0; r < 20; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      ASSERT_EQ(got(r, 24 + c), expected(r, c));
    }
  }
}

TEST_P(Attention, LargeScoresDoNotOverflow) {
  // Scores of thousands: one key takes all.
  for (const std::int64_t head_dim : {16, 64}) {
    expect_matches_reference(
        1, {.tokens_per_sample = 40, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = 1.0}, 0, 30.0, 2e-3);
  }
}

TEST_P(Attention, AFirstTokenSeesItselfAlone) {
  for (const std::int64_t head_dim : {3, 8, 128}) {
    const AttentionShape shape{.tokens_per_sample = 5, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = 1.0};
    const auto in = rounded_inputs(2, shape);

    const auto got = run(in, shape);

    for (std::int64_t c = 0; c < head_dim; ++c) {
      EXPECT_EQ(got(0, c), in.v(0, c));
      EXPECT_EQ(got(5, c), in.v(5, c));
    }
  }
}

TEST_P(Attention, LaterTokensAndOtherSamplesChangeNothing) {
  for (const std::int64_t head_dim : {8, 128}) {
    const AttentionShape shape{.tokens_per_sample = 150, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = 0.3};
    auto in = rounded_inputs(2, shape);
    const auto before = run(in, shape);
    for (std::int64_t c = 0; c < head_dim; ++c) {
      in.k(149, c) = in.v(149, c) = in.k(150, c) = in.v(150, c) = 1e3f;
    }

    const auto after = run(in, shape);

    EXPECT_TRUE(std::equal(before.data.begin(), before.data.begin() + 149 * head_dim, after.data.begin()));
  }
}

TEST_P(Attention, NaNOfAnotherSampleChangesNothing) {
  for (const std::int64_t head_dim : {8, 128}) {
    const AttentionShape shape{.tokens_per_sample = 150, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = 0.3};
    auto in = rounded_inputs(3, shape);
    const auto before = run(in, shape);
    for (std::int64_t c = 0; c < head_dim; ++c) {
      for (const std::int64_t t : {0, 149, 300, 449}) {
        in.q(t, c) = in.k(t, c) = in.v(t, c) = std::nanf("");
      }
    }

    const auto after = run(in, shape);

    EXPECT_TRUE(std::equal(before.data.begin() + 150 * head_dim, before.data.begin() + 300 * head_dim,
                           after.data.begin() + 150 * head_dim));
  }
}

TEST_P(Attention, NaNStaysVisible) {
  for (const std::int64_t head_dim : {4, 8, 64}) {
    const AttentionShape shape{.tokens_per_sample = 40, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .scale = 1.0};
    auto in = inputs(1, shape);
    in.k(10, 2) = std::nanf("");

    const auto got = run(in, shape);

    EXPECT_FALSE(std::isnan(got(9, 0)));
    for (std::int64_t t = 10; t < 40; ++t) {
      EXPECT_TRUE(std::isnan(got(t, 0))) << t;
    }
  }
}

TEST_P(Attention, BitsDoNotDependOnThreadsNorOnOtherSamples) {
  const auto alone = [](const Matrix<float>& both) {
    Matrix<float> second(both.rows / 2, both.cols);
    std::copy(both.data.begin() + second.rows * second.cols, both.data.end(), second.data.begin());
    return second;
  };
  for (const std::int64_t head_dim : {16, 128}) {
    const AttentionShape shape{
        .tokens_per_sample = 200, .heads = 4, .kv_heads = 2, .head_dim = head_dim, .scale = 0.25};
    const auto in = inputs(2, shape);
    const auto first = run(in, shape);
    for (const int threads : {1, 2, 3}) {
      stream.reset();
      backend = GetParam().make(threads);
      stream = backend->create_stream();

      expect_identical(run(in, shape), first);
    }
    expect_identical(run({alone(in.q), alone(in.k), alone(in.v)}, shape), alone(first));
  }
}

TEST_P(Attention, RefusesWhatDoesNotFit) {
  const auto q = upload(normal(10, 12, 1));
  const auto kv = upload(normal(10, 8, 1));
  const auto out = upload(normal(10, 12, 1));
  auto args = arguments({.tokens_per_sample = 5, .heads = 3, .kv_heads = 2, .head_dim = 4});
  args.q = q.view;
  args.k = args.v = kv.view;
  args.out = out.view;
  const auto message = [&] { return error_message([&] { backend->attention(*stream, args); }); };
  EXPECT_THAT(message(), HasSubstr("3 heads share 2 kv_heads"));
  args.kv_heads = 1;
  EXPECT_THAT(message(), AllOf(HasSubstr("k is [10, 8]"), HasSubstr("expected [10, 4]")));
  args.tokens_per_sample = 4;
  EXPECT_THAT(message(), AllOf(HasSubstr("q is [10, 12]"), HasSubstr("samples of 4 tokens")));
  args.tokens_per_sample = 5;
  args.head_stride = 3;
  EXPECT_THAT(message(), AllOf(HasSubstr("head_stride = 3"), HasSubstr("head_dim = 4")));
  args.head_stride = 6;
  EXPECT_THAT(message(), AllOf(HasSubstr("q is [10, 12]"), HasSubstr("expected [10, 16]")));
  args.head_stride = 0;
  args.window = -1;
  EXPECT_THAT(message(), HasSubstr("window = -1"));
  args.window = 0;
  const auto slopes = upload(std::vector<float>{1, 2});
  args.alibi_slopes = flat(slopes);
  EXPECT_THAT(message(), AllOf(HasSubstr("alibi_slopes is [2]"), HasSubstr("expected [3]")));
  args.alibi_slopes.reset();
  args.k = args.v = q.view.slice_cols(0, 4);
  args.out = q.view;
  EXPECT_THAT(message(), HasSubstr("out [10, 12] overlaps q"));
  args.heads = 0;
  EXPECT_THAT(message(), HasSubstr("heads = 0"));
}

INSTANTIATE_TEST_SUITE_P(, Attention, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
