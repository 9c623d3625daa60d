#include "kernels/obq.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/factor.hpp"
#include "tests/reference/grid.hpp"
#include "tests/reference/obq.hpp"

namespace gptqd {
namespace {

using test::available_devices;
using test::device_name;
using test::DeviceTensors;
using test::flat;
using test::Layer;
using test::Matrix;
using test::message_of;
using test::OnDevice;
using ::testing::HasSubstr;
using ::testing::ValuesIn;

template <class T>
void run_obq(DeviceTensors& on, const Matrix<double>& inverse, Layer<T>& layer, int bits) {
  const auto device_inverse = on.upload(inverse, 1);
  const test::DeviceLayer<T> device(on, layer);
  on.backend->obq(*on.stream, {.bits = bits,
                               .inverse = device_inverse.view,
                               .weights = device.weights.view,
                               .group = flat(device.group),
                               .scales = device.scales.view,
                               .zeros = device.zeros.view,
                               .codes = device.codes.view,
                               .delta = device.delta.view});
  device.download(on, layer);
}

template <class T>
Layer<T> layer_with_grids(DeviceTensors& on, std::int64_t rows, std::int64_t n, int bits) {
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  test::group_from_end(n, 7, group, member);
  auto layer = test::make_layer<T>(reference::random_normal(rows, n, 1, 0.05), group, member, (n + 6) / 7);
  test::find_layer_grids(on, layer, {.bits = bits, .symmetric = false, .clip = Clip::none});
  return layer;
}

class Obq : public OnDevice {
 protected:
  DeviceTensors& on = *this;

  template <class T>
  void expect_the_reference() {
    const std::int64_t n = 25;
    const auto h = reference::random_hessian(n, 40, 2);
    for (const int bits : {2, 4}) {
      auto layer = layer_with_grids<T>(on, 11, n, bits);

      run_obq(on, reference::inverse(h), layer, bits);

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
          ASSERT_EQ(layer.delta(r, c), static_cast<T>(scales[i] * (expected[i] - zeros[i]) - weights[i]));
        }
      }
    }
  }

  template <class T>
  void expect_round_to_nearest() {
    Matrix<double> inverse(14, 14);
    for (std::int64_t i = 0; i < 14; ++i) {
      inverse(i, i) = 1.0 / static_cast<double>(1 + i % 3);
    }
    auto layer = layer_with_grids<T>(on, 6, 14, 3);

    run_obq(on, inverse, layer, 3);

    for (std::int64_t r = 0; r < 6; ++r) {
      for (std::int64_t c = 0; c < 14; ++c) {
        const auto g = layer.group[static_cast<std::size_t>(c)];
        const reference::Grid grid{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
        EXPECT_EQ(layer.codes(r, c), reference::code_of(static_cast<double>(layer.weights(r, c)), grid, 3));
      }
    }
  }

  template <class T>
  void expect_the_bits_of(DeviceTensors& other, std::int64_t rows, std::int64_t n) {
    const auto inverse = reference::inverse(reference::random_hessian(n, n + 20, 3));
    auto expected = layer_with_grids<T>(other, rows, n, 3);
    run_obq(other, inverse, expected, 3);
    auto layer = layer_with_grids<T>(on, rows, n, 3);
    run_obq(on, inverse, layer, 3);
    EXPECT_EQ(layer.codes, expected.codes);
    EXPECT_EQ(layer.delta, expected.delta);
  }
};
INSTANTIATE_TEST_SUITE_P(, Obq, ValuesIn(available_devices()), device_name);

TEST_P(Obq, MatchesReferenceThatInvertsAnew) {
  expect_the_reference<float>();
  expect_the_reference<double>();
}

TEST_P(Obq, OfADiagonalHessianRoundsToNearest) {
  expect_round_to_nearest<float>();
  expect_round_to_nearest<double>();
}

TEST_P(Obq, HasTheSameBitsAtEveryNumberOfThreads) {
  for (const int threads : {1, 2, 3}) {
    DeviceTensors other(GetParam(), threads);
    expect_the_bits_of<float>(other, 9, 40);
    expect_the_bits_of<double>(other, 9, 40);
  }
}

TEST_P(Obq, HasTheCpusBits) {
  DeviceTensors cpu(available_devices().front());
  expect_the_bits_of<float>(cpu, 5, 129);
  expect_the_bits_of<double>(cpu, 5, 129);
}

TEST_P(Obq, RefusesLayersThatAreTooWide) {
  const Matrix<double> inverse(1025, 1025);
  auto layer = test::make_layer<float>(Matrix<double>(1, 1025), std::vector<std::int32_t>(1025),
                                       std::vector<std::int32_t>(1025), 1);
  EXPECT_THAT(message_of([&] { run_obq(on, inverse, layer, 4); }), HasSubstr("1025 columns, expected at most 1024"));
}

TEST_P(Obq, RefusesAGroupOutsideTheScales) {
  auto layer = layer_with_grids<float>(on, 2, 14, 3);
  layer.group[5] = 2;
  EXPECT_THAT(message_of([&] { run_obq(on, Matrix<double>(14, 14, 1.0), layer, 3); }),
              HasSubstr("obq: group[5] = 2, expected an index in [0, 2)"));
}

}  // namespace
}  // namespace gptqd
