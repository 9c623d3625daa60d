#include <cmath>

#include "kernels/cross_entropy.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CrossEntropy : public OnDevice {
 protected:
  std::vector<double> run(const Matrix<float>& x, const Matrix<float>& head, const std::vector<std::int32_t>& targets,
                          std::int64_t gap = 0) {
    const auto tokens = upload_rounded(x, gap);
    const auto words = upload_rounded(head, gap);
    const auto wanted = upload(targets);
    const auto nll = upload(filled(1, x.rows, std::nan("")));
    backend->cross_entropy(*stream, {.x = tokens.view, .head = words.view, .targets = flat(wanted), .nll = flat(nll)});
    return download(nll).data;
  }
};

std::vector<std::int32_t> some_targets(std::int64_t tokens, std::int64_t vocabulary) {
  std::vector<std::int32_t> targets;
  for (std::int64_t t = 0; t < tokens; ++t) {
    targets.push_back(t % 5 == 4 ? -1 : static_cast<std::int32_t>((t * 7919 + vocabulary - 1) % vocabulary));
  }
  return targets;
}

TEST_P(CrossEntropy, MatchesReferenceAtOddSizes) {
  for (const auto& [tokens, d, vocabulary] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1},
                                                                                      {1, 5, 2},
                                                                                      {63, 17, 157},
                                                                                      {128, 8, 1023},
                                                                                      {129, 8, 1024},
                                                                                      {130, 8, 1025},
                                                                                      {3, 65, 2100},
                                                                                      {2049, 3, 5},
                                                                                      {2, 4, 8191},
                                                                                      {2, 4, 8192},
                                                                                      {3, 8, 16390}}) {
    const auto x = rounded(normal(tokens, d, 1));
    const auto head = rounded(normal(vocabulary, d, 2));
    const auto targets = some_targets(tokens, vocabulary);

    const auto got = run(x, head, targets, 3);

    SCOPED_TRACE(fmt::format("[{}, {}] x {}", tokens, d, vocabulary));
    EXPECT_THAT(got, ::testing::Pointwise(::testing::DoubleNear(computes_in_f32() ? 1e-5 : 1e-4),
                                          reference::cross_entropy(x, head, targets)));
  }
}

TEST_P(CrossEntropy, LargeLogitsDoNotOverflow) {
  const auto x = rounded(normal(10, 16, 1, 30.0));
  const auto head = rounded(normal(1500, 16, 2, 30.0));
  const auto targets = some_targets(10, 1500);

  const auto got = run(x, head, targets);

  const auto expected = reference::cross_entropy(x, head, targets);
  for (std::size_t t = 0; t < got.size(); ++t) {
    EXPECT_NEAR(got[t], expected[t], 1e-5 * (1000.0 + expected[t]));
  }
}

TEST_P(CrossEntropy, EqualLogitsGiveTheLogarithmOfTheVocabulary) {
  const auto got = run(filled(2, 3, 0.0f), normal(3000, 3, 1), {0, 2999});

  EXPECT_THAT(got, ::testing::Each(::testing::DoubleNear(std::log(3000.0), 1e-12)));
}

TEST_P(CrossEntropy, NaNStaysVisible) {
  auto x = normal(2, 3, 1);
  x(1, 1) = std::nanf("");

  const auto got = run(x, normal(20, 3, 2), {3, 3});

  EXPECT_FALSE(std::isnan(got[0]));
  EXPECT_TRUE(std::isnan(got[1]));
}

TEST_P(CrossEntropy, BitsDoNotDependOnThreads) {
  const auto x = normal(500, 20, 1);
  const auto head = normal(1100, 20, 2);
  const auto targets = some_targets(500, 1100);
  const auto first = run(x, head, targets);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    EXPECT_EQ(run(x, head, targets), first);
  }
}

TEST_P(CrossEntropy, ATargetOutsideTheVocabularyIsThrownByTheStream) {
  EXPECT_THAT(error_message([&] {
                run(normal(3, 4, 1), normal(10, 4, 2), {0, 10, 1});
              }),
              AllOf(HasSubstr("target 10 of token 1"), HasSubstr("vocabulary of 10")));
}

TEST_P(CrossEntropy, RefusesWhatDoesNotFit) {
  EXPECT_THAT(error_message([&] {
                run(normal(3, 4, 1), normal(10, 5, 2), {0, 1, 2});
              }),
              AllOf(HasSubstr("head is [10, 5]"), HasSubstr("expected [10, 4]")));
  EXPECT_THAT(error_message([&] {
                run(normal(3, 4, 1), normal(10, 4, 2), {0, 1});
              }),
              AllOf(HasSubstr("targets is [2]"), HasSubstr("expected [3]")));
  EXPECT_THAT(error_message([&] { run(normal(3, 4, 1), normal(0, 4, 2), {0, 1, 2}); }), HasSubstr("vocabulary"));
}

INSTANTIATE_TEST_SUITE_P(, CrossEntropy, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
