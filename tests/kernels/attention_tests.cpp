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
  Matrix<float> run(const Inputs& in, const AttentionShape& shape, std::int64_t gap = 0) {
    const auto q = upload(in.q, gap);
    const auto k = upload(in.k, gap);
    const auto v = upload(in.v, gap);
    const auto out = unset(in.q.rows, in.q.cols, gap);
    backend->attention(*stream, {.q = q.view,
                                 .k = k.view,
                                 .v = v.view,
                                 .out = out.view,
                                 .tokens_per_sample = shape.tokens_per_sample,
                                 .heads = shape.heads,
                                 .kv_heads = shape.kv_heads,
                                 .head_dim = shape.head_dim,
                                 .scale = static_cast<float>(shape.scale)});
    return download(out);
  }
};

TEST_P(Attention, MatchesReferenceAtOddSizes) {
  for (const std::int64_t tokens : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257}) {
    const AttentionShape shape{.tokens_per_sample = tokens, .heads = 3, .kv_heads = 3, .head_dim = 20, .scale = 0.25};
    const auto in = inputs(2, shape);

    const auto got = run(in, shape);

    SCOPED_TRACE(tokens);
    expect_near(got, reference::attention(in.q, in.k, in.v, shape), 3e-6);
  }
}

TEST_P(Attention, HeadsMayShareKeysAndValues) {
  const AttentionShape shape{.tokens_per_sample = 70, .heads = 6, .kv_heads = 2, .head_dim = 8, .scale = 0.5};
  const auto in = inputs(3, shape);

  expect_near(run(in, shape), reference::attention(in.q, in.k, in.v, shape), 3e-6);
}

TEST_P(Attention, RowsMayBeApart) {
  const AttentionShape shape{.tokens_per_sample = 33, .heads = 2, .kv_heads = 1, .head_dim = 7, .scale = 0.5};
  const auto in = inputs(2, shape);

  expect_near(run(in, shape, 9), reference::attention(in.q, in.k, in.v, shape), 3e-6);
}

TEST_P(Attention, TakesSlicesOfOneBuffer) {
  const AttentionShape shape{.tokens_per_sample = 20, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 0.5};
  const auto in = inputs(1, shape);
  Matrix<float> fused(20, 32);
  for (std::int64_t r = 0; r < 20; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      fused(r, c) = in.q(r, c);
      fused(r, 8 + c) = in.k(r, c);
      fused(r, 16 + c) = in.v(r, c);
    }
  }
  const auto all = upload(fused);

  backend->attention(*stream, {.q = all.view.slice_cols(0, 8),
                               .k = all.view.slice_cols(8, 8),
                               .v = all.view.slice_cols(16, 8),
                               .out = all.view.slice_cols(24, 8),
                               .tokens_per_sample = 20,
                               .heads = 2,
                               .kv_heads = 2,
                               .head_dim = 4,
                               .scale = 0.5f});

  const auto got = download(all);
  const auto expected = run(in, shape);
  for (std::int64_t r = 0; r < 20; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      ASSERT_EQ(got(r, 24 + c), expected(r, c));
    }
  }
}

TEST_P(Attention, LargeScoresDoNotOverflow) {
  const AttentionShape shape{.tokens_per_sample = 40, .heads = 1, .kv_heads = 1, .head_dim = 16, .scale = 1.0};
  const auto in = inputs(1, shape, 30.0);  // scores of thousands: one key takes all

  expect_near(run(in, shape), reference::attention(in.q, in.k, in.v, shape), 2e-3);
}

TEST_P(Attention, AFirstTokenSeesItselfAlone) {
  const AttentionShape shape{.tokens_per_sample = 5, .heads = 1, .kv_heads = 1, .head_dim = 3, .scale = 1.0};
  const auto in = inputs(2, shape);

  const auto got = run(in, shape);

  for (std::int64_t c = 0; c < 3; ++c) {
    EXPECT_EQ(got(0, c), in.v(0, c));
    EXPECT_EQ(got(5, c), in.v(5, c));
  }
}

TEST_P(Attention, LaterTokensAndOtherSamplesChangeNothing) {
  const AttentionShape shape{.tokens_per_sample = 150, .heads = 1, .kv_heads = 1, .head_dim = 8, .scale = 0.3};
  auto in = inputs(2, shape);
  const auto before = run(in, shape);
  for (std::int64_t c = 0; c < 8; ++c) {
    in.k(149, c) = in.v(149, c) = in.k(150, c) = in.v(150, c) = 1e3f;
  }

  const auto after = run(in, shape);

  EXPECT_TRUE(std::equal(before.data.begin(), before.data.begin() + 149 * 8, after.data.begin()));
}

TEST_P(Attention, NaNStaysVisible) {
  const AttentionShape shape{.tokens_per_sample = 40, .heads = 1, .kv_heads = 1, .head_dim = 4, .scale = 1.0};
  auto in = inputs(1, shape);
  in.k(10, 2) = std::nanf("");

  const auto got = run(in, shape);

  EXPECT_FALSE(std::isnan(got(9, 0)));
  for (std::int64_t t = 10; t < 40; ++t) {
    EXPECT_TRUE(std::isnan(got(t, 0))) << t;
  }
}

TEST_P(Attention, BitsDoNotDependOnThreadsNorOnOtherSamples) {
  const AttentionShape shape{.tokens_per_sample = 200, .heads = 4, .kv_heads = 2, .head_dim = 16, .scale = 0.25};
  const auto in = inputs(2, shape);
  const auto first = run(in, shape);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(in, shape), first);
  }
  const auto alone = [](const Matrix<float>& both) {
    Matrix<float> second(both.rows / 2, both.cols);
    std::copy(both.data.begin() + second.rows * second.cols, both.data.end(), second.data.begin());
    return second;
  };
  expect_identical(run({alone(in.q), alone(in.k), alone(in.v)}, shape), alone(first));
}

TEST_P(Attention, RefusesWhatDoesNotFit) {
  const auto q = upload(normal(10, 12, 1));
  const auto kv = upload(normal(10, 8, 1));
  const auto out = upload(normal(10, 12, 1));
  AttentionArgs args{.q = q.view,
                     .k = kv.view,
                     .v = kv.view,
                     .out = out.view,
                     .tokens_per_sample = 5,
                     .heads = 3,
                     .kv_heads = 2,
                     .head_dim = 4};
  const auto message = [&] { return error_message([&] { backend->attention(*stream, args); }); };
  EXPECT_THAT(message(), HasSubstr("3 heads share 2 kv_heads"));
  args.kv_heads = 1;
  EXPECT_THAT(message(), AllOf(HasSubstr("k is [10, 8]"), HasSubstr("expected [10, 4]")));
  args.tokens_per_sample = 4;
  EXPECT_THAT(message(), AllOf(HasSubstr("q is [10, 12]"), HasSubstr("samples of 4 tokens")));
  args.heads = 0;
  EXPECT_THAT(message(), HasSubstr("heads = 0"));
}

INSTANTIATE_TEST_SUITE_P(, Attention, ::testing::ValuesIn(available_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
