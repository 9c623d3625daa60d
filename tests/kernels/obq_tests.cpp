#include "kernels/obq.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/factor.hpp"
#include "tests/reference/grid.hpp"
#include "tests/reference/obq.hpp"

namespace gptqd {
namespace {

using test::Cpu;
using test::Layer;
using test::Matrix;
using test::message_of;
using test::view_of;
using ::testing::HasSubstr;

template <class T>
void run_obq(Cpu& cpu, const Matrix<double>& inverse, Layer<T>& layer, int bits) {
  cpu.backend->obq(*cpu.stream, {.bits = bits,
                                 .inverse = inverse.view(),
                                 .weights = std::as_const(layer.weights).view(),
                                 .group = view_of(std::as_const(layer.group)),
                                 .scales = std::as_const(layer.scales).view(),
                                 .zeros = std::as_const(layer.zeros).view(),
                                 .codes = layer.codes.view(),
                                 .delta = layer.delta.view()});
  cpu.stream->synchronize();
}

template <class T>
Layer<T> layer_with_grids(Cpu& cpu, std::int64_t rows, std::int64_t n, int bits) {
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  test::group_from_end(n, 7, group, member);
  auto layer = test::make_layer<T>(reference::random_normal(rows, n, 1, 0.05), group, member, (n + 6) / 7);
  test::find_layer_grids(cpu, layer, {.bits = bits, .symmetric = false, .clip = Clip::none});
  return layer;
}

template <class T>
class Obq : public ::testing::Test {};
using RealTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Obq, RealTypes);

TYPED_TEST(Obq, MatchesReferenceThatInvertsAnew) {
  Cpu cpu;
  const std::int64_t n = 25;
  const auto h = reference::random_hessian(n, 40, 2);
  for (const int bits : {2, 4}) {
    auto layer = layer_with_grids<TypeParam>(cpu, 11, n, bits);

    run_obq(cpu, reference::inverse(h), layer, bits);

    for (std::int64_t r = 0; r < 11; ++r) {
      std::vector<double> weights;
      std::vector<double> scales;
      std::vector<int> zeros;
      for (std::int64_t c = 0; c < n; ++c) {
        const auto g = layer.group[static_cast<std::size_t>(c)];
        weights.push_back(static_cast<double>(layer.weights(r, c)));
        scales.push_back(static_cast<double>(layer.scales(r, g)));
        zeros.push_back(layer.zeros(r, g));
      }
      const auto expected = reference::obq(h, weights, bits, scales, zeros);
      for (std::int64_t c = 0; c < n; ++c) {
        const auto i = static_cast<std::size_t>(c);
        ASSERT_EQ(layer.codes(r, c), expected[i]) << bits << " bits, " << r << ", " << c;
        ASSERT_EQ(layer.delta(r, c), static_cast<TypeParam>(scales[i] * (expected[i] - zeros[i]) - weights[i]));
      }
    }
  }
}

TYPED_TEST(Obq, OfADiagonalHessianRoundsToNearest) {
  Cpu cpu;
  Matrix<double> inverse(14, 14);
  for (std::int64_t i = 0; i < 14; ++i) {
    inverse(i, i) = 1.0 / static_cast<double>(1 + i % 3);
  }
  auto layer = layer_with_grids<TypeParam>(cpu, 6, 14, 3);

  run_obq(cpu, inverse, layer, 3);

  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t c = 0; c < 14; ++c) {
      const auto g = layer.group[static_cast<std::size_t>(c)];
      const reference::Grid grid{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
      EXPECT_EQ(layer.codes(r, c), reference::code_of(static_cast<double>(layer.weights(r, c)), grid, 3));
    }
  }
}

TYPED_TEST(Obq, HasTheSameBitsAtEveryNumberOfThreads) {
  const auto inverse = reference::inverse(reference::random_hessian(40, 60, 3));
  Cpu one(1);
  auto expected = layer_with_grids<TypeParam>(one, 9, 40, 3);
  run_obq(one, inverse, expected, 3);
  for (const int threads : {2, 3}) {
    Cpu cpu(threads);
    auto layer = layer_with_grids<TypeParam>(cpu, 9, 40, 3);
    run_obq(cpu, inverse, layer, 3);
    EXPECT_EQ(layer.codes, expected.codes);
    EXPECT_EQ(layer.delta, expected.delta);
  }
}

TEST(ObqArgs, RefuseLayersThatAreTooWide) {
  Cpu cpu;
  const Matrix<double> inverse(1025, 1025);
  auto layer = test::make_layer<float>(Matrix<double>(1, 1025), std::vector<std::int32_t>(1025),
                                       std::vector<std::int32_t>(1025), 1);
  EXPECT_THAT(message_of([&] { run_obq(cpu, inverse, layer, 4); }), HasSubstr("1025 columns, expected at most 1024"));
}

}  // namespace
}  // namespace gptqd
