#include <algorithm>
#include <cmath>

#include "kernels/rotary.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Angles {
  Matrix<float> cos;
  Matrix<float> sin;
};

/// Any numbers serve as sines and cosines here: sums of squares other than 1 find mixed-up tables.
Angles angles(std::int64_t positions, std::int64_t half) {
  return {normal(positions, half, 7), normal(positions, half, 8)};
}

class Rotary : public OnDevice {
 protected:
  Matrix<float> run(const Matrix<float>& x, const Angles& table, std::int64_t tokens_per_sample, std::int64_t head_dim,
                    std::int64_t gap = 0) {
    const auto both = upload_rounded(x, gap);
    const auto cos = upload(table.cos, gap);
    const auto sin = upload(table.sin, 2 * gap);
    backend->rotary(*stream, {.x = both.view,
                              .cos = cos.view,
                              .sin = sin.view,
                              .tokens_per_sample = tokens_per_sample,
                              .head_dim = head_dim});
    return download(both);
  }
};

TEST_P(Rotary, MatchesReferenceAtOddSizes) {
  struct Case {
    std::int64_t samples;
    std::int64_t tokens;
    std::int64_t heads;
    std::int64_t head_dim;
    std::int64_t half;
  };
  // Whole heads and parts of them, of widths that 16-byte accesses take and that they do not.
  for (const auto& c : std::vector<Case>{{1, 1, 1, 2, 1},
                                         {2, 5, 3, 6, 3},
                                         {3, 33, 2, 64, 32},
                                         {2, 17, 5, 80, 16},
                                         {1, 300, 1, 128, 64},
                                         {2, 9, 3, 9, 4},
                                         {2, 9, 3, 20, 8},
                                         {1, 3, 40, 256, 128}}) {
    for (const std::int64_t gap : {0, 3, 8}) {
      SCOPED_TRACE(fmt::format("{} x {} tokens, {} heads of {}, {} pairs, gap {}", c.samples, c.tokens, c.heads,
                               c.head_dim, c.half, gap));
      const auto x = rounded(normal(c.samples * c.tokens, c.heads * c.head_dim, 1));
      const auto table = angles(c.tokens + 2, c.half);

      const auto got = run(x, table, c.tokens, c.head_dim, gap);

      const auto expected = reference::rotary(x, table.cos, table.sin, c.tokens, c.head_dim);
      expect_near(got, expected, bound_of(expected, 2e-6));
    }
  }
}

TEST_P(Rotary, ColumnsBehindThePairsStay) {
  const auto x = rounded(normal(6, 30, 1));

  const auto got = run(x, angles(3, 4), 3, 10);

  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t c = 0; c < 30; ++c) {
      if (c % 10 >= 8) {
        EXPECT_EQ(got(r, c), x(r, c));
      } else {
        EXPECT_NE(got(r, c), x(r, c));
      }
    }
  }
}

TEST_P(Rotary, EverySampleBeginsAtPositionZero) {
  const auto x = rounded(normal(12, 16, 1));
  const auto table = angles(4, 4);
  const auto all = run(x, table, 4, 8);

  for (std::int64_t sample = 0; sample < 3; ++sample) {
    Matrix<float> one(4, 16);
    std::copy_n(x.data.begin() + sample * 64, 64, one.data.begin());
    const auto alone = run(one, table, 4, 8);
    EXPECT_TRUE(std::equal(alone.data.begin(), alone.data.end(), all.data.begin() + sample * 64));
  }
}

TEST_P(Rotary, NoPairsChangeNothing) {
  const auto x = rounded(normal(4, 6, 1));

  expect_identical(run(x, angles(4, 0), 4, 3), x);
}

TEST_P(Rotary, NaNStaysInItsPair) {
  auto x = normal(1, 8, 1);
  x(0, 1) = std::nanf("");

  const auto got = run(x, angles(1, 4), 1, 8);

  for (std::int64_t c = 0; c < 8; ++c) {
    EXPECT_EQ(std::isnan(got(0, c)), c == 1 || c == 5) << c;
  }
}

TEST_P(Rotary, BitsDoNotDependOnThreads) {
  const auto x = normal(600, 96, 1);
  const auto table = angles(200, 16);
  const auto first = run(x, table, 200, 32);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(x, table, 200, 32), first);
  }
}

TEST_P(Rotary, RefusesWhatDoesNotFit) {
  const auto x = upload(normal(6, 8, 1));
  const auto cos = upload(normal(3, 2, 1));
  const auto other = upload(normal(3, 3, 1));
  RotaryArgs args{.x = x.view, .cos = cos.view, .sin = other.view, .tokens_per_sample = 3, .head_dim = 4};
  const auto message = [&] { return error_message([&] { backend->rotary(*stream, args); }); };
  EXPECT_THAT(message(), AllOf(HasSubstr("sin is [3, 3]"), HasSubstr("expected [3, 2]")));
  args.sin = args.cos = other.view;
  EXPECT_THAT(message(), AllOf(HasSubstr("cos is [3, 3]"), HasSubstr("at most 2 columns")));
  args.sin = args.cos = cos.view;
  args.tokens_per_sample = 6;
  EXPECT_THAT(message(), AllOf(HasSubstr("cos is [3, 2]"), HasSubstr("at least 6 positions")));
  args.tokens_per_sample = 4;
  EXPECT_THAT(message(), AllOf(HasSubstr("x is [6, 8]"), HasSubstr("samples of 4 tokens")));
  args.tokens_per_sample = 3;
  args.head_dim = 5;
  EXPECT_THAT(message(), HasSubstr("heads of 5"));
}

INSTANTIATE_TEST_SUITE_P(, Rotary, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
