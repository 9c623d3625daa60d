#include <cmath>

#include "kernels/gated_activation.hpp"
#include "tests/kernels/device_tensors.hpp"
#include "tests/reference/forward.hpp"

namespace gptqd::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::array all_activations{Activation::none, Activation::relu, Activation::silu, Activation::gelu_tanh};

class GatedActivation : public OnDevice {
 protected:
  Matrix<float> run(const Matrix<float>& gate, const Matrix<float>& up, Activation activation, std::int64_t gap = 0) {
    const auto g = upload_rounded(gate, gap);
    const auto u = upload_rounded(up, 2 * gap);
    const auto y = unset_compute(gate.rows, gate.cols, gap);
    backend->gated_activation(*stream, {.gate = g.view, .up = u.view, .y = y.view, .activation = activation});
    return download(y);
  }
};

TEST_P(GatedActivation, MatchesReferenceAtOddSizes) {
  for (const auto& [tokens, d] :
       std::vector<std::array<std::int64_t, 2>>{{1, 1}, {63, 65}, {64, 64}, {257, 296}, {3, 40000}, {0, 5}}) {
    for (const auto activation : all_activations) {
      for (const std::int64_t gap : {0, 3, 8}) {
        SCOPED_TRACE(fmt::format("{} of [{}, {}], gap {}", name_of(activation), tokens, d, gap));
        const auto gate = rounded(normal(tokens, d, 1, 3.0));
        const auto up = rounded(normal(tokens, d, 2));

        const auto got = run(gate, up, activation, gap);

        const auto expected = reference::gated_activation(gate, up, activation);
        // exp(z) of a z rounded in fp32 is off by |z| half ulps; from |z| = 16 on results hardly differ from 0 or up.
        auto bound = converted<double>(expected, [](double y) { return 0x1p-19 * std::abs(y) + 1e-9; });
        expect_near(got, expected, bound_of(expected, bound));
      }
    }
  }
}

TEST_P(GatedActivation, LargeGatesReachTheirLimits) {
  Matrix<float> gate(1, 4);
  gate.data = {-10000.0f, 10000.0f, -300.0f, 300.0f};
  for (const auto activation : {Activation::relu, Activation::silu, Activation::gelu_tanh}) {
    const auto got = run(gate, filled(1, 4, 2.0f), activation);

    EXPECT_EQ(std::abs(got(0, 0)), 0.0f) << name_of(activation);
    EXPECT_EQ(got(0, 1), 2.0f * rounded(10000.0f)) << name_of(activation);
    EXPECT_EQ(std::abs(got(0, 2)), 0.0f) << name_of(activation);
    EXPECT_EQ(got(0, 3), 600.0f) << name_of(activation);
  }
}

TEST_P(GatedActivation, NaNStays) {
  for (const auto activation : all_activations) {
    auto gate = filled(1, 3, 1.0f);
    auto up = filled(1, 3, 1.0f);
    gate(0, 0) = std::nanf("");
    up(0, 1) = std::nanf("");

    const auto got = run(gate, up, activation);

    EXPECT_TRUE(std::isnan(got(0, 0))) << name_of(activation);
    EXPECT_TRUE(std::isnan(got(0, 1))) << name_of(activation);
    EXPECT_FALSE(std::isnan(got(0, 2))) << name_of(activation);
  }
}

TEST_P(GatedActivation, TakesHalvesOfOneBuffer) {
  const auto fused = rounded(normal(9, 48, 1));
  const auto all = upload_rounded(fused);
  const auto y = unset_compute(9, 24);

  backend->gated_activation(*stream,
                            {.gate = all.view.slice_cols(0, 24), .up = all.view.slice_cols(24, 24), .y = y.view});

  Matrix<float> gate(9, 24);
  Matrix<float> up(9, 24);
  for (std::int64_t r = 0; r < 9; ++r) {
    for (std::int64_t c = 0; c < 24; ++c) {
      gate(r, c) = fused(r, c);
      up(r, c) = fused(r, 24 + c);
    }
  }
  expect_identical(download(y), run(gate, up, Activation::silu));
}

TEST_P(GatedActivation, BitsDoNotDependOnThreads) {
  const auto gate = normal(500, 200, 1);
  const auto up = normal(500, 200, 2);
  const auto first = run(gate, up, Activation::silu);
  for (const int threads : {1, 2, 3}) {
    stream.reset();
    backend = GetParam().make(threads);
    stream = backend->create_stream();

    expect_identical(run(gate, up, Activation::silu), first);
  }
}

TEST_P(GatedActivation, RefusesWhatDoesNotFit) {
  const auto a = upload(normal(2, 4, 1));
  const auto b = upload(normal(2, 4, 1));
  const auto narrow = upload(normal(2, 3, 1));
  const auto message = [&](GatedActivationArgs args) {
    return error_message([&] { backend->gated_activation(*stream, args); });
  };
  EXPECT_THAT(message({.gate = a.view, .up = narrow.view, .y = b.view}),
              AllOf(HasSubstr("gated_activation: up is [2, 3]"), HasSubstr("expected [2, 4]")));
  EXPECT_THAT(message({.gate = a.view, .up = b.view, .y = narrow.view}), HasSubstr("y is [2, 3]"));
  EXPECT_THAT(message({.gate = a.view, .up = b.view, .y = a.view}), HasSubstr("y [2, 4] overlaps gate"));
  EXPECT_THAT(message({.gate = a.view, .up = b.view, .y = b.view}), HasSubstr("y [2, 4] overlaps up"));
}

INSTANTIATE_TEST_SUITE_P(, GatedActivation, ::testing::ValuesIn(compute_devices()), device_name);

}  // namespace
}  // namespace gptqd::test
