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

using test::Cpu;
using test::Layer;
using test::Matrix;
using test::message_of;
using test::view_of;
using ::testing::HasSubstr;

/// The grid of one group of weights.
template <class T>
reference::Grid grid_of(const GridSpec& spec, std::vector<T> weights) {
  const auto grid =
      cpu::GridSearch<T>(spec).find(weights.data(), static_cast<std::int64_t>(weights.size()), nullptr, 0);
  return {static_cast<double>(grid.scale), grid.zero};
}

struct ByHand {
  const char* name;
  GridSpec spec;
  std::vector<float> weights;
  reference::Grid expected;
};

class GridByHand : public ::testing::TestWithParam<ByHand> {};

TEST_P(GridByHand, IsAsTheFormulasSay) {
  const auto& [name, spec, weights, expected] = GetParam();
  const auto in_single = grid_of(spec, weights);
  const auto in_double = grid_of(spec, std::vector<double>(weights.begin(), weights.end()));
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
        ByHand{"bf16_largest", spec(4, true, ScaleFormat::bf16_and_f16), {65400.0f * 7.5f}, {65280, 8}}),
    [](const auto& info) { return std::string(info.param.name); });

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

TEST(GridSearch, SurvivesWeightsThatAreNotFinite) {
  for (const auto clip : {Clip::none, Clip::mse}) {
    for (const bool symmetric : {false, true}) {
      for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 3e38f}) {
        const auto grid = grid_of(GridSpec{.symmetric = symmetric, .clip = clip}, std::vector<float>{-1, bad, 2, -bad});
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

std::string find_grids_name(const ::testing::TestParamInfo<std::tuple<int, bool, Clip>>& info) {
  const auto& [bits, symmetric, clip] = info.param;
  return fmt::format("{}bits_{}_{}", bits, symmetric ? "symmetric" : "asymmetric",
                     clip == Clip::none  ? "none"
                     : clip == Clip::mse ? "mse"
                                         : "hessian");
}

class FindGrids : public ::testing::TestWithParam<std::tuple<int, bool, Clip>> {
 protected:
  /// The parameters' specs: both forms of scales, with and without the published code's symmetric grid.
  static std::vector<GridSpec> specs() {
    const auto [bits, symmetric, clip] = GetParam();
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
    Cpu cpu;
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

    cpu.backend->find_grids(*cpu.stream, {.spec = spec,
                                          .weights = std::as_const(layer.weights).view(),
                                          .group = view_of(std::as_const(layer.group)),
                                          .member = view_of(std::as_const(layer.member)),
                                          .scales = layer.scales.view(),
                                          .zeros = layer.zeros.view(),
                                          .blocks = ConstTensorView<float, 3>(memory.data(), {3, size, size})});
    cpu.stream->synchronize();

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
                         ::testing::Combine(::testing::Values(2, 3, 4, 8), ::testing::Bool(),
                                            ::testing::Values(Clip::none, Clip::mse, Clip::hessian)),
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

TEST(FindGridsOverChunks, MatchesReferenceForGroupsOfThousands) {
  const auto weights = ragged_weights(6, 1555, 2).as<float>();
  const GridSpec spec{.bits = 3, .symmetric = false};
  for (std::int64_t r = 0; r < weights.rows; ++r) {
    const std::vector<float> row(weights.view().row(r), weights.view().row(r) + weights.cols);
    const auto got = grid_of(spec, row);
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

TEST(FindGridsBits, DoNotDependOnTheNumberOfThreadsNorOnWhichRowsCome) {
  const GridSpec spec{.bits = 4, .symmetric = false};
  Cpu one(1);
  auto expected = scattered_layer<float>(50, 90, 4);
  test::find_layer_grids(one, expected, spec);
  for (const int threads : {2, 3}) {
    Cpu cpu(threads);
    auto layer = scattered_layer<float>(50, 90, 4);
    for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, 7}, {7, 43}}) {
      cpu.backend->find_grids(*cpu.stream, {.spec = spec,
                                            .weights = std::as_const(layer.weights).view().slice_rows(first, rows),
                                            .group = view_of(std::as_const(layer.group)),
                                            .member = view_of(std::as_const(layer.member)),
                                            .scales = layer.scales.view().slice_rows(first, rows),
                                            .zeros = layer.zeros.view().slice_rows(first, rows),
                                            .blocks = {}});
    }
    cpu.stream->synchronize();
    EXPECT_EQ(layer.scales, expected.scales);
    EXPECT_EQ(layer.zeros, expected.zeros);
  }
}

TEST(FindGridsArgs, WithoutMembersMeanAscendingColumns) {
  Cpu cpu;
  const GridSpec spec{.bits = 3, .clip = Clip::none};
  auto expected = scattered_layer<float>(6, 30, 7);
  test::find_layer_grids(cpu, expected, spec);
  auto layer = scattered_layer<float>(6, 30, 7);
  layer.member.clear();

  test::find_layer_grids(cpu, layer, spec);

  EXPECT_EQ(layer.scales, expected.scales);
  EXPECT_EQ(layer.zeros, expected.zeros);
}

TEST(FindGridsArgs, AreRefusedWithGotAndExpected) {
  Cpu cpu;
  auto layer = scattered_layer<float>(2, 21, 5);
  EXPECT_THAT(message_of([&] { test::find_layer_grids(cpu, layer, {.bits = 5}); }),
              HasSubstr("find_grids: bits = 5, expected 2, 3, 4 or 8"));
  EXPECT_THAT(message_of([&] { test::find_layer_grids(cpu, layer, {.clip = Clip::hessian}); }),
              HasSubstr("blocks is [0, 0, 0], expected [3, 0, 0]"));
  layer.member[4] = 20;
  EXPECT_THAT(message_of([&] { test::find_layer_grids(cpu, layer, {}); }), HasSubstr("column 4 is member 20 of group"));
}

TEST(RoundToGrids, RoundsHalfToEvenAndClamps) {
  Cpu cpu;
  const float infinity = std::numeric_limits<float>::infinity();
  Matrix<float> weights(1, 10);
  weights.data = {0.5f, 1.5f, 2.5f, -0.5f, -7.6f, -9, 7.4f, 1e30f, infinity, -infinity};
  const std::vector<std::int32_t> group(10);
  const Matrix<float> scales(1, 1, 1.0f);
  const Matrix<std::uint8_t> zeros(1, 1, 8);
  Matrix<std::uint8_t> codes(1, 10);
  Matrix<float> delta(1, 10);

  cpu.backend->round_to_grids(*cpu.stream, {.bits = 4,
                                            .weights = std::as_const(weights).view(),
                                            .group = view_of(group),
                                            .scales = scales.view(),
                                            .zeros = zeros.view(),
                                            .codes = codes.view(),
                                            .delta = delta.view()});
  cpu.stream->synchronize();

  EXPECT_EQ(codes.data, (std::vector<std::uint8_t>{8, 10, 10, 8, 0, 0, 15, 15, 15, 0}));
  EXPECT_EQ(delta(0, 0), -0.5f);
  EXPECT_EQ(delta(0, 1), 0.5f);
}

template <class T>
void check_rounding(int bits) {
  Cpu cpu;
  auto layer = scattered_layer<T>(57, 83, 6);
  test::find_layer_grids(cpu, layer, {.bits = bits, .symmetric = false});

  cpu.backend->round_to_grids(*cpu.stream, {.bits = bits,
                                            .weights = std::as_const(layer.weights).view(),
                                            .group = view_of(std::as_const(layer.group)),
                                            .scales = std::as_const(layer.scales).view(),
                                            .zeros = std::as_const(layer.zeros).view(),
                                            .codes = layer.codes.view(),
                                            .delta = layer.delta.view()});
  cpu.stream->synchronize();

  for (std::int64_t r = 0; r < 57; ++r) {
    for (std::int64_t c = 0; c < 83; ++c) {
      const auto g = layer.group[static_cast<std::size_t>(c)];
      const reference::Grid grid{static_cast<double>(layer.scales(r, g)), layer.zeros(r, g)};
      ASSERT_EQ(layer.codes(r, c), reference::code_of(layer.weights(r, c), grid, bits)) << r << ", " << c;
      ASSERT_EQ(layer.delta(r, c), static_cast<T>(reference::rounding_error(layer.weights(r, c), grid, bits)));
    }
  }
}

TEST(RoundToGrids, MatchesReference) {
  for (const int bits : {2, 3, 4, 8}) {
    check_rounding<float>(bits);
    check_rounding<double>(bits);
  }
}

}  // namespace
}  // namespace gptqd
