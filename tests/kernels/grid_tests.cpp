#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/grid_search.hpp"
#include "kernels/grid.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/grid.hpp"

namespace gptqd {
namespace {

using test::available_devices;
using test::Device;
using test::device_name;
using test::DeviceTensors;
using test::flat;
using test::Layer;
using test::Matrix;
using test::message_of;
using test::OnDevice;
using ::testing::HasSubstr;
using ::testing::ValuesIn;

/// The grid of one group of weights.
template <class T>
reference::Grid grid_of(DeviceTensors& on, const GridSpec& spec, const std::vector<T>& weights) {
  Matrix<double> row(1, static_cast<std::int64_t>(weights.size()));
  row.data.assign(weights.begin(), weights.end());
  auto layer = test::make_layer<T>(row, std::vector<std::int32_t>(weights.size()), {}, 1);
  test::find_layer_grids(on, layer, spec);
  return {static_cast<double>(layer.scales(0, 0)), layer.zeros(0, 0)};
}

struct ByHand {
  const char* name;
  GridSpec spec;
  std::vector<float> weights;
  reference::Grid expected;
};
std::ostream& operator<<(std::ostream& out, const ByHand& example) { return out << example.name; }

class GridByHand : public ::testing::TestWithParam<std::tuple<Device, ByHand>> {};

TEST_P(GridByHand, IsAsTheFormulasSay) {
  DeviceTensors on(std::get<Device>(GetParam()));
  const auto& [name, spec, weights, expected] = std::get<ByHand>(GetParam());
  const auto in_single = grid_of(on, spec, weights);
  const auto in_double = grid_of(on, spec, std::vector<double>(weights.begin(), weights.end()));
  EXPECT_EQ(in_single, expected) << in_single.scale << " " << in_single.zero;
  EXPECT_EQ(in_double, expected) << in_double.scale << " " << in_double.zero;
}

constexpr GridSpec spec(int bits, bool symmetric, ScaleFormat format = ScaleFormat::f16, bool published = false) {
  return {.bits = bits,
          .symmetric = symmetric,
          .clip = Clip::none,
          .scale_format = format,
          .published_symmetric = published};
}

INSTANTIATE_TEST_SUITE_P(
    , GridByHand,
    ::testing::Combine(
        ValuesIn(available_devices()),
        ::testing::Values(
            ByHand{"asymmetric", spec(2, false), {-1, 0.3f, 2}, {1.0, 1}},
            ByHand{"asymmetric_positive", spec(4, false), {3, 7.5f}, {0.5, 0}},
            ByHand{"asymmetric_negative", spec(4, false), {-3, -7.5f}, {0.5, 15}},
            ByHand{"asymmetric_zero_half_to_even", spec(2, false), {-1.5f, 1.5f}, {1.0, 2}},
            ByHand{"symmetric", spec(4, true), {-7.5f, 1}, {1.0, 8}},
            ByHand{"symmetric_three_bits", spec(3, true), {3.5f, -1}, {1.0, 4}},
            ByHand{"symmetric_eight_bits", spec(8, true), {127.5f, -1}, {1.0, 128}},
            ByHand{"symmetric_positive", spec(4, true), {7.5f, 1}, {1.0, 8}},
            ByHand{"published_symmetric_positive", spec(4, true, ScaleFormat::f16, true), {7.5f, 1}, {0.5, 8}},
            ByHand{"published_symmetric_negative", spec(4, true, ScaleFormat::f16, true), {7.5f, -1}, {1.0, 8}},
            ByHand{"zeros_asymmetric", spec(2, false), {0, 0, 0}, {1365.0 / 2048, 2}},
            ByHand{"zeros_symmetric", spec(2, true), {0, 0, 0}, {1365.0 / 2048, 2}},
            ByHand{"zeros_published", spec(2, true, ScaleFormat::f16, true), {0, -0.0f}, {1365.0 / 2048, 2}},
            ByHand{"f16_tie_to_even", spec(4, true), {7.5f * (1 + 0x1p-11f)}, {1.0, 8}},
            ByHand{"f16_tie_to_even_above", spec(4, true), {7.5f * (1 + 3 * 0x1p-11f)}, {1 + 0x1p-9, 8}},
            ByHand{"f16_smallest", spec(4, true), {1e-9f}, {0x1p-24, 8}},
            ByHand{"f16_subnormal", spec(4, true), {7.5f * 3 * 0x1p-24f}, {3 * 0x1p-24, 8}},
            ByHand{"f16_largest", spec(4, true), {1e9f}, {65504, 8}},
            ByHand{"bf16_tie_to_even", spec(4, true, ScaleFormat::bf16_and_f16), {7.5f * (1 + 0x1p-8f)}, {1.0, 8}},
            ByHand{"bf16_nearest", spec(4, true, ScaleFormat::bf16_and_f16), {7.5f * (1 + 0x1.2p-8f)}, {1 + 0x1p-7, 8}},
            ByHand{"bf16_smallest", spec(4, true, ScaleFormat::bf16_and_f16), {1e-5f}, {0x1p-14, 8}},
            ByHand{"bf16_largest", spec(4, true, ScaleFormat::bf16_and_f16), {65400.0f * 7.5f}, {65280, 8}})),
    [](const auto& info) { return std::get<Device>(info.param).name + "_" + std::get<ByHand>(info.param).name; });

TEST(StoredScale, IsInRangeForEveryNumber) {
  for (const auto format : {ScaleFormat::f16, ScaleFormat::bf16_and_f16}) {
    for (const float scale : {0.0f, 1e-40f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
      const float stored = cpu::stored_scale(scale, format);
      EXPECT_GE(stored, 0x1p-24f) << scale;
      EXPECT_LE(stored, 65504.0f) << scale;
    }
  }
}

TEST(StoredScale, OfBf16ModelsIsExactInBothHalfTypes) {
  for (float scale = 1e-6f; scale < 1e6f; scale *= 1.0137f) {
    const float stored = cpu::stored_scale(scale, ScaleFormat::bf16_and_f16);
    EXPECT_EQ(to_float(to_half(stored)), stored) << scale;
    EXPECT_EQ(to_float(to_bfloat16(stored)), stored) << scale;
  }
}

class GridSearch : public OnDevice {
 protected:
  DeviceTensors& on = *this;
};
INSTANTIATE_TEST_SUITE_P(, GridSearch, ValuesIn(available_devices()), device_name);

TEST_P(GridSearch, SurvivesWeightsThatAreNotFinite) {
  for (const auto clip : {Clip::none, Clip::mse}) {
    for (const bool symmetric : {false, true}) {
      for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 3e38f}) {
        const auto grid =
            grid_of(on, GridSpec{.symmetric = symmetric, .clip = clip}, std::vector<float>{-1, bad, 2, -bad});
        EXPECT_LE(grid.scale, 65504);
        EXPECT_LE(grid.zero, 15);
      }
    }
  }
}

/// Rows with a few large weights, as real layers have; a row of zeros, one without negative weights, one constant.
Matrix<double> ragged_weights(std::int64_t rows, std::int64_t n, std::uint32_t seed) {
  auto weights = reference::random_normal(rows, n, seed, 0.02);
  for (std::int64_t r = 0; r < rows; ++r) {
    weights(r, (7 * r) % n) *= 6;
    for (std::int64_t c = 0; c < n; ++c) {
      auto& value = weights(r, c);
      value = r == 1   ? 0
              : r == 2 ? std::abs(value)
              : r == 3 ? -0.25
                       : static_cast<double>(to_float(to_half(static_cast<float>(value))));
    }
  }
  return weights;
}

/// Columns of 3 groups, scattered; group g has count(g) of n columns.
template <class T>
Layer<T> scattered_layer(std::int64_t rows, std::int64_t n, std::uint32_t seed) {
  std::vector<std::int32_t> group(static_cast<std::size_t>(n));
  std::vector<std::int32_t> member(static_cast<std::size_t>(n));
  std::vector<std::int32_t> next(3);
  for (std::size_t c = 0; c < group.size(); ++c) {
    group[c] = static_cast<std::int32_t>((c * c + 1) % 7 % 3);
    member[c] = next[static_cast<std::size_t>(group[c])]++;
  }
  // Members count down, so that they are not in the columns' order.
  for (std::size_t c = 0; c < group.size(); ++c) {
    member[c] = next[static_cast<std::size_t>(group[c])] - 1 - member[c];
  }
  return test::make_layer<T>(ragged_weights(rows, n, seed), group, member, 3);
}

/// The weights of one row and group, in the order of their members.
template <class T>
std::vector<T> group_weights(const Layer<T>& layer, std::int64_t r, std::int64_t g) {
  std::vector<T> values(static_cast<std::size_t>(std::count(layer.group.begin(), layer.group.end(), g)));
  for (std::size_t c = 0; c < layer.group.size(); ++c) {
    if (layer.group[c] == g) {
      values[static_cast<std::size_t>(layer.member[c])] = layer.weights(r, static_cast<std::int64_t>(c));
    }
  }
  return values;
}

using FindGridsParam = std::tuple<Device, int, bool, Clip>;

std::string find_grids_name(const ::testing::TestParamInfo<FindGridsParam>& info) {
  const auto& [device, bits, symmetric, clip] = info.param;
  return fmt::format("{}_{}bits_{}_{}", device.name, bits, symmetric ? "symmetric" : "asymmetric",
                     clip == Clip::none  ? "none"
                     : clip == Clip::mse ? "mse"
                                         : "hessian");
}

class FindGrids : public ::testing::TestWithParam<FindGridsParam> {
 protected:
  /// The parameters' specs: both forms of scales, with and without the published code's symmetric grid.
  static std::vector<GridSpec> specs() {
    const auto& [device, bits, symmetric, clip] = GetParam();
    std::vector<GridSpec> result;
    for (const auto format : {ScaleFormat::f16, ScaleFormat::bf16_and_f16}) {
      for (const bool published : {false, true}) {
        result.push_back({.bits = bits,
                          .symmetric = symmetric,
                          .clip = clip,
                          .scale_format = format,
                          .published_symmetric = published});
      }
    }
    return result;
  }

  template <class T>
  static void check(const GridSpec& spec, std::int64_t rows, std::int64_t n) {
    DeviceTensors on(std::get<Device>(GetParam()));
    auto layer = scattered_layer<T>(rows, n, 1);
    std::vector<Matrix<double>> blocks;
    const auto size = n * 2 / 3 + 1;
    std::vector<float> memory(static_cast<std::size_t>(3 * size * size), 1e6f);
    for (std::int64_t g = 0; g < 3; ++g) {
      const auto count = std::count(layer.group.begin(), layer.group.end(), g);
      blocks.push_back(reference::random_hessian(count, 2 * count, static_cast<std::uint32_t>(g))
                           .template as<float>()
                           .template as<double>());
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t j = 0; j < count; ++j) {
          memory[static_cast<std::size_t>((g * size + i) * size + j)] = static_cast<float>(blocks.back()(i, j));
        }
      }
    }

    const auto device_weights = on.upload(layer.weights, 3);
    const auto group = on.upload(layer.group);
    const auto member = on.upload(layer.member);
    const auto scales = on.upload(layer.scales, 1);
    const auto zeros = on.upload(layer.zeros, 2);
    const auto device_blocks = on.upload(memory);
    on.backend->find_grids(*on.stream, {.spec = spec,
                                        .weights = device_weights.view,
                                        .group = flat(group),
                                        .member = flat(member),
                                        .scales = scales.view,
                                        .zeros = zeros.view,
                                        .blocks = ConstTensorView<float, 3>(device_blocks.view.data, {3, size, size})});
    layer.scales = on.download(scales);
    layer.zeros = on.download(zeros);

    // Errors are summed in another precision: of candidates this close either may win.
    const double close = std::is_same_v<T, float> && spec.clip == Clip::hessian ? 1e-5 : 3e-6;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t g = 0; g < 3; ++g) {
        const auto weights = group_weights(layer, r, g);
        const auto* const block = &blocks[static_cast<std::size_t>(g)];
        const reference::Grid got{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
        const auto best = reference::find_grid(spec, weights, block);
        if (got == best) {
          continue;
        }
        const auto all = reference::candidates(spec, weights);
        ASSERT_NE(std::find(all.begin(), all.end(), got), all.end())
            << "row " << r << " group " << g << " scale " << got.scale << " zero " << got.zero;
        ASSERT_LE(reference::clip_error(spec, weights, got, block),
                  (1 + close) * reference::clip_error(spec, weights, best, block))
            << "row " << r << " group " << g;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(, FindGrids,
                         ::testing::Combine(ValuesIn(available_devices()), ::testing::Values(2, 3, 4, 8),
                                            ::testing::Bool(), ::testing::Values(Clip::none, Clip::mse, Clip::hessian)),
                         find_grids_name);

TEST_P(FindGrids, MatchesReferenceInSinglePrecision) {
  for (const auto& spec : specs()) {
    check<float>(spec, 9, 61);
  }
}

TEST_P(FindGrids, MatchesReferenceInDoublePrecision) {
  for (const auto& spec : specs()) {
    check<double>(spec, 5, 37);
  }
}

TEST_P(GridSearch, MatchesReferenceForGroupsOfThousands) {
  const auto weights = ragged_weights(6, 1555, 2).as<float>();
  const GridSpec spec{.bits = 3, .symmetric = false};
  for (std::int64_t r = 0; r < weights.rows; ++r) {
    const std::vector<float> row(weights.view().row(r), weights.view().row(r) + weights.cols);
    const auto got = grid_of(on, spec, row);
    const auto best = reference::find_grid(spec, row);
    EXPECT_LE(reference::clip_error(spec, row, got, nullptr),
              (1 + 3e-6) * reference::clip_error(spec, row, best, nullptr))
        << r;
  }
}

TEST(FindGridsBits, DoNotDependOnTheInstructionSet) {
  const auto weights = ragged_weights(40, 333, 3);
  for (const auto clip : {Clip::none, Clip::mse}) {
    for (const bool symmetric : {false, true}) {
      const GridSpec spec{.bits = 3, .symmetric = symmetric, .clip = clip};
      for (std::int64_t r = 0; r < weights.rows; ++r) {
        const std::vector<float> row(weights.view().row(r), weights.view().row(r) + weights.cols);
        cpu::GridSearch<float> baseline(spec, vectorized::Level::baseline);
        const auto expected = baseline.find(row.data(), weights.cols, nullptr, 0);
        for (const auto level : {vectorized::Level::avx2, vectorized::Level::avx512}) {
          if (level <= vectorized::best_level()) {
            const auto got = cpu::GridSearch<float>(spec, level).find(row.data(), weights.cols, nullptr, 0);
            EXPECT_EQ(got.scale, expected.scale) << r;
            EXPECT_EQ(got.zero, expected.zero) << r;
          }
        }
      }
    }
  }
}

TEST_P(GridSearch, DependsNeitherOnTheNumberOfThreadsNorOnWhichRowsCome) {
  const GridSpec spec{.bits = 4, .symmetric = false};
  DeviceTensors one(GetParam(), 1);
  auto expected = scattered_layer<float>(50, 90, 4);
  test::find_layer_grids(one, expected, spec);
  for (const int threads : {2, 3}) {
    DeviceTensors other(GetParam(), threads);
    auto layer = scattered_layer<float>(50, 90, 4);
    const test::DeviceLayer<float> device(other, layer);
    for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, 7}, {7, 43}}) {
      other.backend->find_grids(*other.stream, {.spec = spec,
                                                .weights = device.weights.view.slice_rows(first, rows),
                                                .group = flat(device.group),
                                                .member = flat(device.member),
                                                .scales = device.scales.view.slice_rows(first, rows),
                                                .zeros = device.zeros.view.slice_rows(first, rows),
                                                .blocks = {}});
    }
    device.download(other, layer);
    EXPECT_EQ(layer.scales, expected.scales);
    EXPECT_EQ(layer.zeros, expected.zeros);
  }
}

/// `groups` groups of `size` columns side by side; rows as large and as small as models have them.
template <class T>
Layer<T> layer_of_groups(std::int64_t rows, std::int64_t size, std::int64_t groups, std::uint32_t seed) {
  auto weights = ragged_weights(rows, size * groups, seed);
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  for (std::int64_t c = 0; c < size * groups; ++c) {
    group.push_back(static_cast<std::int32_t>(c / size));
    member.push_back(static_cast<std::int32_t>(c % size));
    for (std::int64_t r = 0; r < rows; ++r) {
      weights(r, c) *= std::ldexp(1.0, static_cast<int>(r % 5 * 6 - 14));
    }
  }
  return test::make_layer<T>(weights, group, member, groups);
}

template <class T>
void expect_the_cpus_grids(DeviceTensors& on) {
  DeviceTensors cpu(available_devices().front());
  for (const auto& [size, groups] : {std::pair<std::int64_t, std::int64_t>{8, 9}, {128, 3}, {200, 2}, {1555, 1}}) {
    for (const auto clip : {Clip::none, Clip::mse}) {
      for (const int bits : {2, 4, 8}) {
        for (const bool symmetric : {false, true}) {
          const GridSpec spec{.bits = bits, .symmetric = symmetric, .clip = clip};
          auto expected = layer_of_groups<T>(11, size, groups, 8);
          test::find_layer_grids(cpu, expected, spec);
          auto layer = layer_of_groups<T>(11, size, groups, 8);
          test::find_layer_grids(on, layer, spec);
          ASSERT_EQ(layer.scales, expected.scales) << size << " columns, " << bits << " bits";
          ASSERT_EQ(layer.zeros, expected.zeros) << size << " columns, " << bits << " bits";
        }
      }
    }
  }
}

TEST_P(GridSearch, HasTheCpusBits) {
  expect_the_cpus_grids<float>(on);
  expect_the_cpus_grids<double>(on);
}

/// Blocks of H, one channel of each massive.
std::vector<Matrix<double>> blocks_with_massive_channels(std::int64_t size, std::int64_t groups) {
  std::vector<Matrix<double>> blocks;
  for (std::int64_t g = 0; g < groups; ++g) {
    auto block = reference::random_hessian(size, 2 * size, static_cast<std::uint32_t>(g));
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j < size; ++j) {
        block(i, j) *= (i == g % size ? 1000.0 : 1.0) * (j == g % size ? 1000.0 : 1.0);
      }
    }
    blocks.push_back(block.as<float>().as<double>());
  }
  return blocks;
}

TEST_P(GridSearch, ByTheHessianMatchesTheCpuForGroupsOfAllSizes) {
  DeviceTensors cpu(available_devices().front());
  for (const std::int64_t size : {8, 32, 56, 128, 136, 300}) {
    constexpr std::int64_t groups = 2;
    const auto blocks = blocks_with_massive_channels(size, groups);
    std::vector<float> memory;
    for (const auto& block : blocks) {
      memory.insert(memory.end(), block.data.begin(), block.data.end());
    }
    const GridSpec spec{.bits = 3, .symmetric = false, .clip = Clip::hessian};
    const auto found_by = [&](DeviceTensors& own) {
      auto layer = layer_of_groups<float>(69, size, groups, 9);
      const auto device_blocks = own.upload(memory);
      test::find_layer_grids(own, layer, spec,
                             ConstTensorView<float, 3>(device_blocks.view.data, {groups, size, size}));
      return layer;
    };
    const auto expected = found_by(cpu);
    const auto layer = found_by(on);
    for (std::int64_t r = 0; r < layer.weights.rows; ++r) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const reference::Grid got{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
        const reference::Grid best{static_cast<double>(expected.scales(r, g)), expected.zeros(r, g)};
        if (!(got == best)) {
          const auto weights = group_weights(layer, r, g);
          const auto* const block = &blocks[static_cast<std::size_t>(g)];
          ASSERT_LE(reference::clip_error(spec, weights, got, block),
                    (1 + 1e-5) * reference::clip_error(spec, weights, best, block))
              << size << " columns, row " << r << ", group " << g;
        }
      }
    }
  }
}

/// A block of H whose channels have nearly everything in common: one direction has 1e6 times the energy of any other.
Matrix<double> block_of_one_direction(std::int64_t size, std::uint32_t seed) {
  const auto direction = reference::random_normal(1, size, seed);
  auto block = reference::product(reference::transposed(direction), direction);
  double energy = 0;
  for (const double value : direction.data) {
    energy += value * value;
  }
  for (std::int64_t i = 0; i < size; ++i) {
    block(i, i) += 1e-6 * energy;
  }
  return block.as<float>().as<double>();
}

/// Grids of a layer whose groups have `blocks`.
void find_grids_by_hessian(DeviceTensors& on, Layer<float>& layer, const GridSpec& spec,
                           const std::vector<Matrix<double>>& blocks) {
  std::vector<float> memory;
  for (const auto& block : blocks) {
    memory.insert(memory.end(), block.data.begin(), block.data.end());
  }
  const auto device_blocks = on.upload(memory);
  const auto groups = static_cast<std::int64_t>(blocks.size());
  test::find_layer_grids(
      on, layer, spec,
      ConstTensorView<float, 3>(device_blocks.view.data, {groups, blocks.front().rows, blocks.front().cols}));
}

/// δ H δᵀ of every candidate, and |δ| |H| |δ|ᵀ, of which that is computed to fp32's precision. @pre H is symmetric
struct CandidateErrors {
  std::vector<reference::Grid> grids;
  std::vector<double> errors;
  std::vector<double> magnitudes;

  CandidateErrors(const GridSpec& spec, const std::vector<float>& weights, const Matrix<double>& block)
      : grids(reference::candidates(spec, weights)), errors(grids.size()), magnitudes(grids.size()) {
    Matrix<double> delta(block.rows, static_cast<std::int64_t>(grids.size()));
    for (std::int64_t i = 0; i < delta.rows; ++i) {
      for (std::int64_t k = 0; k < delta.cols; ++k) {
        delta(i, k) = reference::rounding_error(weights[static_cast<std::size_t>(i)],
                                                grids[static_cast<std::size_t>(k)], spec.bits);
      }
    }
    for (std::int64_t i = 0; i < delta.rows; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        const double entry = (j == i ? 1 : 2) * block(i, j);
        for (std::size_t k = 0; k < grids.size(); ++k) {
          const double term = delta.view().row(i)[k] * entry * delta.view().row(j)[k];
          errors[k] += term;
          magnitudes[k] += std::abs(term);
        }
      }
    }
  }
};

/// The grids that were found are candidates with the smallest error, as far as fp32 tells errors apart.
void expect_best_candidates(DeviceTensors& on, Layer<float> layer, const GridSpec& spec,
                            const std::vector<Matrix<double>>& blocks) {
  find_grids_by_hessian(on, layer, spec, blocks);
  for (std::int64_t r = 0; r < layer.weights.rows; ++r) {
    for (std::int64_t g = 0; g < layer.scales.cols; ++g) {
      const CandidateErrors all(spec, group_weights(layer, r, g), blocks[static_cast<std::size_t>(g)]);
      const reference::Grid found{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
      const auto at =
          static_cast<std::size_t>(std::find(all.grids.begin(), all.grids.end(), found) - all.grids.begin());
      ASSERT_LT(at, all.grids.size()) << "row " << r << " group " << g << " scale " << found.scale;
      const auto best =
          static_cast<std::size_t>(std::min_element(all.errors.begin(), all.errors.end()) - all.errors.begin());
      ASSERT_LE(all.errors[at], all.errors[best] + 0x1p-21 * (all.magnitudes[at] + all.magnitudes[best]))
          << "row " << r << " group " << g << ": candidate " << at << ", the best is " << best << ", "
          << all.errors[at] / all.errors[best] << " of its error";
    }
  }
}

/// Every third row with weights that fp32 alone holds, others as 16-bit types hold them.
void use_all_of_fp32(Layer<float>& layer) {
  for (std::int64_t r = 0; r < layer.weights.rows; r += 3) {
    for (std::int64_t c = 0; c < layer.weights.cols; ++c) {
      layer.weights(r, c) *= 1.1f;
    }
  }
}

TEST_P(GridSearch, ByTheHessianFindsTheBestCandidate) {
  constexpr std::int64_t groups = 2;
  for (const std::int64_t size : {16, 32, 48, 64, 100, 128}) {
    std::vector<Matrix<double>> ordinary;
    std::vector<Matrix<double>> one_direction;
    for (std::uint32_t g = 0; g < groups; ++g) {
      ordinary.push_back(reference::random_hessian(size, 2 * size, g).as<float>().as<double>());
      one_direction.push_back(block_of_one_direction(size, g));
    }
    for (const int bits : {2, 3, 4, 8}) {
      for (const bool symmetric : {false, true}) {
        const GridSpec spec{.bits = bits, .symmetric = symmetric, .clip = Clip::hessian};
        auto layer = layer_of_groups<float>(6, size, groups, static_cast<std::uint32_t>(size + bits));
        use_all_of_fp32(layer);
        expect_best_candidates(on, layer, spec, ordinary);
        expect_best_candidates(on, layer, spec, one_direction);
        expect_best_candidates(on, layer, spec, blocks_with_massive_channels(size, groups));
        if (HasFatalFailure()) {
          FAIL() << "groups of " << size << ", " << bits << " bits, " << (symmetric ? "symmetric" : "asymmetric");
        }
      }
    }
  }
}

TEST_P(GridSearch, ByTheHessianFindsTheBestOfCandidatesThatRepeat) {
  // Of most candidates the scale is the smallest that the form holds.
  const GridSpec spec{.bits = 8, .clip = Clip::hessian, .scale_format = ScaleFormat::bf16_and_f16};
  auto layer = layer_of_groups<float>(40, 64, 1, 3);
  for (std::int64_t r = 0; r < layer.weights.rows; ++r) {
    const auto row = layer.weights.view().row(r);
    float largest = 0;
    for (std::int64_t c = 0; c < layer.weights.cols; ++c) {
      largest = std::max(largest, std::abs(row[c]));
    }
    const int shift = largest > 0 ? -7 - std::ilogb(largest) : 0;
    for (std::int64_t c = 0; c < layer.weights.cols; ++c) {
      row[c] = std::ldexp(row[c], shift);
    }
  }
  expect_best_candidates(on, layer, spec, {reference::random_hessian(64, 128, 5).as<float>().as<double>()});
}

TEST_P(GridSearch, ByTheHessianTakesTheFirstOfEqualCandidates) {
  const GridSpec spec{.bits = 4, .clip = Clip::hessian};
  for (const std::int64_t size : {16, 100, 300}) {
    auto zeros = layer_of_groups<float>(3, size, 1, 6);
    std::fill(zeros.weights.data.begin(), zeros.weights.data.end(), 0.0f);
    find_grids_by_hessian(on, zeros, spec, {reference::random_hessian(size, 2 * size, 1)});
    auto nothing = layer_of_groups<float>(3, size, 1, 6);
    find_grids_by_hessian(on, nothing, spec, {Matrix<double>(size, size)});
    for (std::int64_t r = 0; r < 3; ++r) {
      const reference::Grid of_zeros{static_cast<double>(zeros.scales(r, 0)), zeros.zeros(r, 0)};
      EXPECT_EQ(of_zeros, reference::candidates(spec, group_weights(zeros, r, 0)).front()) << size << ", row " << r;
      const reference::Grid of_nothing{static_cast<double>(nothing.scales(r, 0)), nothing.zeros(r, 0)};
      EXPECT_EQ(of_nothing, reference::candidates(spec, group_weights(nothing, r, 0)).front()) << size << ", row " << r;
    }
  }
}

TEST_P(GridSearch, ByTheHessianDoesNotDependOnWhichRowsCome) {
  const GridSpec spec{.bits = 3, .symmetric = false, .clip = Clip::hessian};
  for (const std::int64_t size : {32, 64, 128, 136}) {
    const auto block = reference::random_hessian(size, 2 * size, 4).as<float>();
    const auto blocks = on.upload(block.data);
    auto expected = layer_of_groups<float>(50, size, 1, 4);
    use_all_of_fp32(expected);
    auto layer = expected;
    const ConstTensorView<float, 3> view(blocks.view.data, {1, size, size});
    test::find_layer_grids(on, expected, spec, view);
    const test::DeviceLayer<float> device(on, layer);
    for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, 7}, {7, 26}, {33, 17}}) {
      on.backend->find_grids(*on.stream, {.spec = spec,
                                          .weights = device.weights.view.slice_rows(first, rows),
                                          .group = flat(device.group),
                                          .member = flat(device.member),
                                          .scales = device.scales.view.slice_rows(first, rows),
                                          .zeros = device.zeros.view.slice_rows(first, rows),
                                          .blocks = view});
    }
    device.download(on, layer);
    EXPECT_EQ(layer.scales, expected.scales) << size;
    EXPECT_EQ(layer.zeros, expected.zeros) << size;
  }
}

TEST_P(GridSearch, WithoutMembersMeansAscendingColumns) {
  const GridSpec spec{.bits = 3, .clip = Clip::mse};
  auto expected = scattered_layer<float>(6, 3000, 7);
  std::vector<std::int32_t> next(3);
  for (std::size_t c = 0; c < expected.group.size(); ++c) {
    expected.member[c] = next[static_cast<std::size_t>(expected.group[c])]++;
  }
  test::find_layer_grids(on, expected, spec);
  auto layer = scattered_layer<float>(6, 3000, 7);
  layer.member.clear();

  test::find_layer_grids(on, layer, spec);

  EXPECT_EQ(layer.scales, expected.scales);
  EXPECT_EQ(layer.zeros, expected.zeros);
}

TEST_P(GridSearch, RefusesArgumentsWithGotAndExpected) {
  auto layer = scattered_layer<float>(2, 21, 5);
  EXPECT_THAT(message_of([&] { test::find_layer_grids(on, layer, {.bits = 5}); }),
              HasSubstr("find_grids: bits = 5, expected 2, 3, 4 or 8"));
  EXPECT_THAT(message_of([&] { test::find_layer_grids(on, layer, {.clip = Clip::hessian}); }),
              HasSubstr("blocks is [0, 0, 0], expected [3, 0, 0]"));
  layer.member[4] = 20;
  EXPECT_THAT(message_of([&] { test::find_layer_grids(on, layer, {}); }), HasSubstr("column 4 is member 20 of group"));
}

TEST_P(GridSearch, RefusesAGroupOutsideTheScales) {
  auto layer = scattered_layer<float>(2, 21, 5);
  layer.group[7] = 3;
  EXPECT_THAT(message_of([&] { test::find_layer_grids(on, layer, {}); }),
              HasSubstr("find_grids: group[7] = 3, expected an index in [0, 3)"));
}

TEST_P(GridSearch, RefusesTwoColumnsAtOnePlaceOfAGroup) {
  auto layer = scattered_layer<float>(2, 21, 5);
  const auto other = std::find(layer.group.begin() + 1, layer.group.end(), layer.group[0]) - layer.group.begin();
  layer.member[static_cast<std::size_t>(other)] = layer.member[0];
  EXPECT_THAT(message_of([&] { test::find_layer_grids(on, layer, {}); }),
              HasSubstr(fmt::format("column {} is member {} of group {}", other, layer.member[0], layer.group[0])));
}

TEST_P(GridSearch, RefusesBlocksWithoutRoomForAGroup) {
  auto layer = scattered_layer<float>(2, 21, 5);
  const auto largest = std::max({std::count(layer.group.begin(), layer.group.end(), 0),
                                 std::count(layer.group.begin(), layer.group.end(), 1),
                                 std::count(layer.group.begin(), layer.group.end(), 2)});
  const auto blocks = on.upload(std::vector<float>(3 * 4));
  EXPECT_THAT(message_of([&] {
                test::find_layer_grids(on, layer, {.clip = Clip::hessian},
                                       ConstTensorView<float, 3>(blocks.view.data, {3, 2, 2}));
              }),
              HasSubstr(fmt::format("blocks are [3, 2, 2], expected room for the {} columns of a group", largest)));
}

class RoundToGrids : public OnDevice {
 protected:
  DeviceTensors& on = *this;
};
INSTANTIATE_TEST_SUITE_P(, RoundToGrids, ValuesIn(available_devices()), device_name);

TEST_P(RoundToGrids, RoundsHalfToEvenAndClamps) {
  const float infinity = std::numeric_limits<float>::infinity();
  Matrix<float> weights(1, 10);
  weights.data = {0.5f, 1.5f, 2.5f, -0.5f, -7.6f, -9, 7.4f, 1e30f, infinity, -infinity};
  const std::vector<std::int32_t> group(10);
  const Matrix<float> scales(1, 1, 1.0f);
  const Matrix<std::uint8_t> zeros(1, 1, 8);
  Matrix<std::uint8_t> codes(1, 10);
  Matrix<float> delta(1, 10);

  const auto device_weights = upload(weights);
  const auto device_group = upload(group);
  const auto device_scales = upload(scales);
  const auto device_zeros = upload(zeros);
  const auto device_codes = upload(codes);
  const auto device_delta = upload(delta);
  backend->round_to_grids(*stream, {.bits = 4,
                                    .weights = device_weights.view,
                                    .group = flat(device_group),
                                    .scales = device_scales.view,
                                    .zeros = device_zeros.view,
                                    .codes = device_codes.view,
                                    .delta = device_delta.view});
  codes = download(device_codes);
  delta = download(device_delta);

  EXPECT_EQ(codes.data, (std::vector<std::uint8_t>{8, 10, 10, 8, 0, 0, 15, 15, 15, 0}));
  EXPECT_EQ(delta(0, 0), -0.5f);
  EXPECT_EQ(delta(0, 1), 0.5f);
}

template <class T>
void round_layer(DeviceTensors& on, Layer<T>& layer, int bits, std::int64_t gap) {
  const auto weights = on.upload(layer.weights, gap);
  const auto group = on.upload(layer.group);
  const auto scales = on.upload(layer.scales, gap);
  const auto zeros = on.upload(layer.zeros, gap);
  const auto codes = on.upload(layer.codes, gap);
  const auto delta = on.upload(layer.delta, gap);
  on.backend->round_to_grids(*on.stream, {.bits = bits,
                                          .weights = weights.view,
                                          .group = flat(group),
                                          .scales = scales.view,
                                          .zeros = zeros.view,
                                          .codes = codes.view,
                                          .delta = delta.view});
  layer.codes = on.download(codes);
  layer.delta = on.download(delta);
}

template <class T>
void check_rounding(DeviceTensors& on, int bits, std::int64_t n, std::int64_t gap) {
  auto layer = scattered_layer<T>(57, n, 6);
  test::find_layer_grids(on, layer, {.bits = bits, .symmetric = false});
  round_layer(on, layer, bits, gap);

  for (std::int64_t r = 0; r < 57; ++r) {
    for (std::int64_t c = 0; c < n; ++c) {
      const auto g = layer.group[static_cast<std::size_t>(c)];
      const reference::Grid grid{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
      ASSERT_EQ(layer.codes(r, c), reference::code_of(layer.weights(r, c), grid, bits)) << r << ", " << c;
      ASSERT_EQ(layer.delta(r, c), static_cast<T>(reference::rounding_error(layer.weights(r, c), grid, bits)));
    }
  }
}

TEST_P(RoundToGrids, MatchesReference) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& [n, gap] : {std::pair<std::int64_t, std::int64_t>{83, 0}, {84, 0}, {84, 1}}) {
      check_rounding<float>(on, bits, n, gap);
      check_rounding<double>(on, bits, n, gap);
    }
  }
}

TEST_P(RoundToGrids, RefusesAGroupOutsideTheScales) {
  auto layer = scattered_layer<float>(2, 21, 5);
  layer.group[7] = -1;
  EXPECT_THAT(message_of([&] { round_layer(on, layer, 4, 0); }),
              HasSubstr("round_to_grids: group[7] = -1, expected an index in [0, 3)"));
}

}  // namespace
}  // namespace gptqd
