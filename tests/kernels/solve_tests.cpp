#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/solve.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/factor.hpp"
#include "tests/reference/gptq.hpp"
#include "tests/reference/solve.hpp"

namespace gptqd {
namespace {

using test::Cpu;
using test::cut_panels;
using test::factor_panels;
using test::group_from_end;
using test::Layer;
using test::make_layer;
using test::Matrix;
using test::message_of;
using test::Panel;
using test::solve_rows;
using test::SolveSettings;
using test::view_of;
using ::testing::HasSubstr;

/// Groups of `size` columns, dealt out like cards: what act-order with static groups looks like.
void scatter_groups(std::int64_t n, std::int64_t size, std::vector<std::int32_t>& group,
                    std::vector<std::int32_t>& member) {
  group.resize(static_cast<std::size_t>(n));
  member.resize(static_cast<std::size_t>(n));
  const auto groups = (n + size - 1) / size;
  for (std::int64_t a = 0; a < n; ++a) {
    group[static_cast<std::size_t>(a)] = static_cast<std::int32_t>(a % groups);
    member[static_cast<std::size_t>(a)] = static_cast<std::int32_t>(a / groups);
  }
}

template <class T>
std::vector<Panel<T>> factored(Cpu& cpu, const Matrix<double>& h, std::int64_t width) {
  auto panels = cut_panels<T>(h, width);
  EXPECT_EQ(factor_panels(cpu, panels), 0);
  return panels;
}

/// A layer with grids, solved.
template <class T>
Layer<T> solved(Cpu& cpu, const std::vector<Panel<T>>& panels, const Matrix<double>& weights, std::int64_t group_size,
                const SolveSettings& settings) {
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  const auto n = weights.cols;
  if (settings.dynamic_grids) {
    group_from_end(n, group_size, group, member);
  } else {
    scatter_groups(n, group_size, group, member);
  }
  auto layer = make_layer<T>(weights, group, member, (n + group_size - 1) / group_size);
  if (!settings.dynamic_grids) {
    test::find_layer_grids(cpu, layer, settings.grid);
  }
  solve_rows(cpu, panels, layer, settings, 0, weights.rows);
  return layer;
}

struct SolveShape {
  std::int64_t rows, n, width, block, group;
};

std::string solve_shape_name(const ::testing::TestParamInfo<std::tuple<SolveShape, int, bool, bool>>& info) {
  const auto& [shape, bits, symmetric, dynamic] = info.param;
  return fmt::format("{}x{}_{}bits_{}_{}{}", shape.rows, shape.n, bits, symmetric ? "symmetric" : "asymmetric",
                     dynamic ? "dynamic" : "given", shape.width > shape.n ? "_one_panel" : "");
}

class SolveShapes : public ::testing::TestWithParam<std::tuple<SolveShape, int, bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(
    , SolveShapes,
    ::testing::Combine(::testing::Values(SolveShape{1, 1, 4, 4, 1},        // one weight
                                         SolveShape{67, 150, 64, 32, 16},  // short panel, short block, short tile
                                         SolveShape{20, 150, 300, 32, 8},  // one panel with a short block
                                         SolveShape{20, 97, 24, 24, 24},   // panels of one block; a short group
                                         SolveShape{64, 128, 64, 64, 32}),
                       ::testing::Values(2, 4), ::testing::Bool(), ::testing::Bool()),
    solve_shape_name);

TEST_P(SolveShapes, InDoublePrecisionMatchReferenceExactly) {
  const auto& [shape, bits, symmetric, dynamic] = GetParam();
  Cpu cpu;
  const auto h = reference::random_hessian(shape.n, shape.n + 20, 1);
  const auto weights = reference::random_normal(shape.rows, shape.n, 2, 0.05);
  const auto panels = factored<double>(cpu, h, shape.width);
  const SolveSettings settings{.grid = {.bits = bits, .symmetric = symmetric, .clip = Clip::none},
                               .dynamic_grids = dynamic,
                               .block = shape.block,
                               .row_tile = 48};

  const auto layer = solved(cpu, panels, weights, shape.group, settings);

  auto scales = layer.scales;
  auto zeros = layer.zeros;
  const auto expected = reference::solve(*reference::cholesky(h), weights, settings.grid, layer.group, layer.member,
                                         dynamic, scales, zeros);
  EXPECT_EQ(layer.codes, expected.codes);
  EXPECT_EQ(layer.scales, scales);
  EXPECT_EQ(layer.zeros, zeros);
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    const auto loss = expected.row_loss[static_cast<std::size_t>(r)];
    EXPECT_NEAR(layer.row_loss[static_cast<std::size_t>(r)], loss, 1e-9 * loss);
    for (std::int64_t c = 0; c < shape.n; ++c) {
      ASSERT_EQ(layer.delta(r, c), expected.delta(r, c)) << r << ", " << c;
    }
  }
}

TEST_P(SolveShapes, InSinglePrecisionHaveTheLossOfDoublePrecision) {
  const auto& [shape, bits, symmetric, dynamic] = GetParam();
  Cpu cpu;
  const auto h = reference::random_hessian(shape.n, shape.n + 20, 3);
  const auto weights = reference::random_normal(shape.rows, shape.n, 4, 0.05);
  const SolveSettings settings{.grid = {.bits = bits, .symmetric = symmetric, .clip = Clip::none},
                               .dynamic_grids = dynamic,
                               .block = shape.block};
  const auto exact =
      solved(cpu, factored<double>(cpu, h, shape.width), weights.as<float>().as<double>(), shape.group, settings);

  const auto layer = solved(cpu, factored<float>(cpu, h, shape.width), weights, shape.group, settings);

  std::int64_t rows_that_differ = 0;
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    rows_that_differ +=
        !std::equal(layer.codes.view().row(r), layer.codes.view().row(r) + shape.n, exact.codes.view().row(r));
  }
  EXPECT_LE(rows_that_differ, shape.rows / 10);
  const double loss = std::accumulate(layer.row_loss.begin(), layer.row_loss.end(), 0.0);
  const double exact_loss = std::accumulate(exact.row_loss.begin(), exact.row_loss.end(), 0.0);
  EXPECT_NEAR(loss, exact_loss, 5e-3 * exact_loss);
}

/// The classic algorithm against panels: the processing order i is the factor order a = n − 1 − i.
class SolveClassic : public ::testing::TestWithParam<std::tuple<int, bool>> {};
INSTANTIATE_TEST_SUITE_P(, SolveClassic, ::testing::Combine(::testing::Values(2, 3, 4, 8), ::testing::Bool()),
                         [](const auto& info) {
                           return fmt::format("{}bits_{}", std::get<0>(info.param),
                                              std::get<1>(info.param) ? "symmetric" : "asymmetric");
                         });

TEST_P(SolveClassic, GivesTheCodesOfCholeskyInverseCholesky) {
  const auto [bits, symmetric] = GetParam();
  Cpu cpu;
  const std::int64_t n = 144;
  const auto h = reference::random_hessian(n, 170, 5, 0);
  const auto weights = reference::random_normal(33, n, 6, 0.05);
  for (const bool act_order : {false, true}) {
    const reference::GptqOptions options{.grid = {.bits = bits, .symmetric = symmetric, .clip = Clip::mse},
                                         .group_size = 16,
                                         .act_order = act_order,
                                         .static_groups = act_order};
    const auto classic = reference::gptq(weights, h, options);

    std::vector<std::int32_t> factor_order(classic.order.rbegin(), classic.order.rend());
    const auto panels = factored<double>(cpu, reference::permuted(classic.damped_hessian, factor_order), 64);
    std::vector<std::int32_t> group;
    std::vector<std::int32_t> member;
    for (const auto column : factor_order) {
      group.push_back(classic.g_idx[static_cast<std::size_t>(column)]);
      member.push_back(column % 16);
    }
    auto layer = make_layer<double>(reference::permuted_columns(weights, factor_order), group, member, n / 16);
    layer.scales = classic.scales;
    layer.zeros = classic.zeros;
    solve_rows(cpu, panels, layer, {.grid = options.grid, .dynamic_grids = !act_order, .block = 32}, 0, weights.rows);

    EXPECT_EQ(layer.codes, reference::permuted_columns(classic.codes, factor_order)) << act_order;
    EXPECT_EQ(layer.scales, classic.scales) << act_order;
  }
}

template <class T>
class SolveBits : public ::testing::Test {};
using RealTypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SolveBits, RealTypes);

TYPED_TEST(SolveBits, DependNeitherOnThreadsNorOnHowRowsAreSplitAtTiles) {
  const auto h = reference::random_hessian(200, 230, 7);
  const auto weights = reference::random_normal(257, 200, 8, 0.05);
  for (const bool dynamic : {false, true}) {
    const SolveSettings settings{
        .grid = {.bits = 3, .clip = Clip::mse}, .dynamic_grids = dynamic, .block = 32, .row_tile = 32};
    Cpu one(1);
    const auto panels = factored<TypeParam>(one, h, 64);
    const auto expected = solved(one, panels, weights, 16, settings);
    for (const int threads : {1, 2, 3}) {
      Cpu cpu(threads);
      auto layer = expected;
      layer.delta = Matrix<TypeParam>(257, 200, TypeParam{9});
      layer.row_loss.assign(257, 0.0);

      solve_rows(cpu, panels, layer, settings, 0, 96);
      solve_rows(cpu, panels, layer, settings, 96, 161);

      EXPECT_EQ(layer.codes, expected.codes);
      EXPECT_EQ(layer.delta, expected.delta);
      EXPECT_EQ(layer.scales, expected.scales);
      EXPECT_EQ(layer.row_loss, expected.row_loss);
    }
  }
}

TYPED_TEST(SolveBits, OfWeightedNormsDependNeitherOnThreadsNorOnHowRowsAreSplitAtTiles) {
  const auto h = reference::random_hessian(130, 150, 9);
  const auto delta = reference::random_normal(100, 130, 10, 0.01).as<TypeParam>();
  const std::vector<double> extra(130, 0.5);
  std::vector<std::vector<double>> results;
  for (const int threads : {1, 2, 3}) {
    Cpu cpu(threads);
    const auto panels = factored<TypeParam>(cpu, h, 64);
    std::vector<double> norms(100);
    const std::int64_t split = threads == 1 ? 100 : 32 * (threads - 1);
    for (const auto& panel : panels) {
      for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, split}, {split, 100 - split}}) {
        cpu.backend->weighted_norms(*cpu.stream, {.factor = panel.values.view(),
                                                  .first = panel.first,
                                                  .delta = delta.view().slice_rows(first, rows),
                                                  .extra = view_of(extra),
                                                  .norms = view_of(norms).slice_rows(first, rows),
                                                  .row_tile = 32});
      }
    }
    cpu.stream->synchronize();
    results.push_back(norms);
  }
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TYPED_TEST(SolveBits, WeightedNormsAreTheUndampedLoss) {
  Cpu cpu;
  const std::int64_t n = 101;
  const auto h = reference::random_hessian(n, 120, 11, 0);
  const auto delta = reference::random_normal(35, n, 12, 0.01);
  auto damped = h;
  std::vector<double> extra(static_cast<std::size_t>(n));
  for (std::int64_t c = 0; c < n; ++c) {
    extra[static_cast<std::size_t>(c)] = 1.0 + 0.1 * static_cast<double>(c);
    damped(c, c) += extra[static_cast<std::size_t>(c)];
  }
  const auto panels = factored<TypeParam>(cpu, damped, 32);
  const auto typed = delta.template as<TypeParam>();
  std::vector<double> norms(35, 100.0);

  for (const auto& panel : panels) {
    cpu.backend->weighted_norms(*cpu.stream, {.factor = panel.values.view(),
                                              .first = panel.first,
                                              .delta = typed.view(),
                                              .extra = view_of(extra),
                                              .norms = view_of(norms)});
  }
  cpu.stream->synchronize();

  const auto weighted = reference::product(delta, h);
  for (std::int64_t r = 0; r < 35; ++r) {
    double loss = 0;
    for (std::int64_t c = 0; c < n; ++c) {
      loss += weighted(r, c) * delta(r, c);
    }
    EXPECT_NEAR(norms[static_cast<std::size_t>(r)] - 100, loss,
                (std::is_same_v<TypeParam, float> ? 1e-5 : 1e-10) * loss)
        << r;
  }
}

TEST(SolvePanel, AddsToTheRowLoss) {
  Cpu cpu;
  const auto panels = factored<double>(cpu, reference::random_hessian(40, 60, 13), 64);
  const auto weights = reference::random_normal(5, 40, 14, 0.05);
  const SolveSettings settings{.grid = {.clip = Clip::none}};
  auto layer = solved(cpu, panels, weights, 20, settings);
  const auto once = layer.row_loss;

  solve_rows(cpu, panels, layer, settings, 0, 5);

  for (std::size_t r = 0; r < 5; ++r) {
    EXPECT_DOUBLE_EQ(layer.row_loss[r], 2 * once[r]);
  }
}

TEST(SolvePanel, DynamicGridsWithHessianClipUseTheGroupsBlock) {
  Cpu cpu;
  const auto h = reference::random_hessian(32, 50, 15);
  const auto panels = factored<float>(cpu, h, 32);
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  group_from_end(32, 16, group, member);
  auto layer = make_layer<float>(reference::random_normal(9, 32, 16, 0.05), group, member, 2);
  const GridSpec spec{.bits = 3, .clip = Clip::hessian};
  std::vector<float> memory(2 * 16 * 16);
  for (std::int64_t a = 0; a < 32; ++a) {
    for (std::int64_t b = 0; b < 32; ++b) {
      const auto i = static_cast<std::size_t>(a);
      const auto j = static_cast<std::size_t>(b);
      if (group[i] == group[j]) {
        memory[static_cast<std::size_t>(group[i] * 256 + member[i] * 16 + member[j])] = static_cast<float>(h(a, b));
      }
    }
  }
  const ConstTensorView<float, 3> blocks(memory.data(), {2, 16, 16});
  auto from_weights = layer;
  cpu.backend->find_grids(*cpu.stream, {.spec = spec,
                                        .weights = std::as_const(layer.weights).view(),
                                        .group = view_of(std::as_const(group)),
                                        .member = view_of(std::as_const(member)),
                                        .scales = from_weights.scales.view(),
                                        .zeros = from_weights.zeros.view(),
                                        .blocks = blocks});

  cpu.backend->solve_panel(*cpu.stream, {.grid = spec,
                                         .dynamic_grids = true,
                                         .block = 32,
                                         .factor = panels[0].values.view(),
                                         .weights = std::as_const(layer.weights).view(),
                                         .delta = layer.delta.view(),
                                         .codes = layer.codes.view(),
                                         .group = view_of(std::as_const(group)),
                                         .member = view_of(std::as_const(member)),
                                         .scales = layer.scales.view(),
                                         .zeros = layer.zeros.view(),
                                         .blocks = blocks,
                                         .row_loss = view_of(layer.row_loss)});
  cpu.stream->synchronize();

  // Nothing was updated before the first group, much before the second.
  std::int64_t equal = 0;
  for (std::int64_t r = 0; r < 9; ++r) {
    EXPECT_EQ(layer.scales(r, 0), from_weights.scales(r, 0)) << r;
    equal += layer.scales(r, 1) == from_weights.scales(r, 1);
  }
  EXPECT_LT(equal, 9);
}

TEST(SolvePanelArgs, AreRefusedWithGotAndExpected) {
  Cpu cpu;
  const auto h = reference::random_hessian(48, 60, 17);
  const auto weights = reference::random_normal(3, 48, 18, 0.05);
  const auto panels = factored<double>(cpu, h, 32);
  EXPECT_THAT(message_of([&] { solved(cpu, panels, weights, 8, {.block = 24}); }),
              HasSubstr("the panel holds columns [16, 48) of 48, expected whole blocks of 24"));
  EXPECT_THAT(message_of([&] { solved(cpu, panels, weights, 8, {.block = 32, .row_tile = 0}); }),
              HasSubstr("row_tile = 0, expected both to be positive"));
  EXPECT_THAT(message_of([&] { solved(cpu, panels, weights, 8, {.grid = {.bits = 1}, .block = 32}); }),
              HasSubstr("bits = 1, expected 2, 3, 4 or 8"));
}

TEST(SolvePanelArgs, RefuseDynamicGroupsThatCrossBlocks) {
  Cpu cpu;
  const auto panels = factored<double>(cpu, reference::random_hessian(48, 60, 19), 16);
  const auto weights = reference::random_normal(3, 48, 20, 0.05);
  EXPECT_THAT(message_of([&] { solved(cpu, panels, weights, 24, {.dynamic_grids = true, .block = 16}); }),
              HasSubstr("group 0 has columns from 24 to 47, expected all of them in the block [32, 48)"));
}

TEST(SolvePanelArgs, RefuseAFactorWithAZeroOnItsDiagonal) {
  Cpu cpu;
  auto panels = factored<double>(cpu, reference::random_hessian(48, 60, 21), 16);
  panels[1].values(3, 3) = 0;
  EXPECT_THAT(message_of([&] { solved(cpu, panels, reference::random_normal(3, 48, 22, 0.05), 8, {.block = 16}); }),
              HasSubstr("the factor's diagonal is 0 at column 19"));
}

}  // namespace
}  // namespace gptqd
