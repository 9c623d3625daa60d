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

using test::cut_panels;
using test::Device;
using test::DeviceTensors;
using test::factor_panels;
using test::flat;
using test::group_from_end;
using test::Layer;
using test::make_layer;
using test::Matrix;
using test::message_of;
using test::OnDevice;
using test::Panel;
using test::solve_rows;
using test::SolveSettings;
using test::with_real_types;
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
std::vector<Panel<T>> factored(DeviceTensors& on, const Matrix<double>& h, std::int64_t width) {
  auto panels = cut_panels<T>(h, width);
  EXPECT_EQ(factor_panels(on, panels), 0);
  return panels;
}

/// A layer with grids, solved.
template <class T>
Layer<T> solved(DeviceTensors& on, const std::vector<Panel<T>>& panels, const Matrix<double>& weights,
                std::int64_t group_size, const SolveSettings& settings) {
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
    test::find_layer_grids(on, layer, settings.grid);
  }
  solve_rows(on, panels, layer, settings, 0, weights.rows);
  return layer;
}

struct SolveShape {
  std::int64_t rows, n, width, block, group;
};

using ShapeParam = std::tuple<SolveShape, int, bool, bool, Device>;

std::string solve_shape_name(const ::testing::TestParamInfo<ShapeParam>& info) {
  const auto& [shape, bits, symmetric, dynamic, device] = info.param;
  return fmt::format("{}_{}x{}_{}bits_{}_{}{}", device.name, shape.rows, shape.n, bits,
                     symmetric ? "symmetric" : "asymmetric", dynamic ? "dynamic" : "given",
                     shape.width > shape.n ? "_one_panel" : "");
}

class SolveShapes : public ::testing::TestWithParam<ShapeParam> {};
INSTANTIATE_TEST_SUITE_P(
    , SolveShapes,
    ::testing::Combine(::testing::Values(SolveShape{1, 1, 4, 4, 1},        // one weight
                                         SolveShape{67, 150, 64, 32, 16},  // short panel, short block, short tile
                                         SolveShape{20, 150, 300, 32, 8},  // one panel with a short block
                                         SolveShape{20, 97, 24, 24, 24},   // panels of one block; a short group
                                         SolveShape{64, 128, 64, 64, 32}),
                       ::testing::Values(2, 4), ::testing::Bool(), ::testing::Bool(),
                       ::testing::ValuesIn(test::available_devices())),
    solve_shape_name);

TEST_P(SolveShapes, InDoublePrecisionMatchReferenceExactly) {
  const auto& [shape, bits, symmetric, dynamic, device] = GetParam();
  DeviceTensors on(device, 2);
  const auto h = reference::random_hessian(shape.n, shape.n + 20, 1);
  const auto weights = reference::random_normal(shape.rows, shape.n, 2, 0.05);
  const auto panels = factored<double>(on, h, shape.width);
  const SolveSettings settings{.grid = {.bits = bits, .symmetric = symmetric, .clip = Clip::none},
                               .dynamic_grids = dynamic,
                               .block = shape.block,
                               .row_tile = 48};

  const auto layer = solved(on, panels, weights, shape.group, settings);

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
  const auto& [shape, bits, symmetric, dynamic, device] = GetParam();
  DeviceTensors on(device, 2);
  const auto h = reference::random_hessian(shape.n, shape.n + 20, 3);
  const auto weights = reference::random_normal(shape.rows, shape.n, 4, 0.05);
  const SolveSettings settings{.grid = {.bits = bits, .symmetric = symmetric, .clip = Clip::none},
                               .dynamic_grids = dynamic,
                               .block = shape.block};
  const auto exact =
      solved(on, factored<double>(on, h, shape.width), weights.as<float>().as<double>(), shape.group, settings);

  const auto layer = solved(on, factored<float>(on, h, shape.width), weights, shape.group, settings);

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
class SolveClassic : public ::testing::TestWithParam<std::tuple<int, bool, Device>> {};
INSTANTIATE_TEST_SUITE_P(, SolveClassic,
                         ::testing::Combine(::testing::Values(2, 3, 4, 8), ::testing::Bool(),
                                            ::testing::ValuesIn(test::available_devices())),
                         [](const auto& info) {
                           return fmt::format("{}_{}bits_{}", std::get<2>(info.param).name, std::get<0>(info.param),
                                              std::get<1>(info.param) ? "symmetric" : "asymmetric");
                         });

TEST_P(SolveClassic, GivesTheCodesOfCholeskyInverseCholesky) {
  const auto& [bits, symmetric, device] = GetParam();
  DeviceTensors on(device, 2);
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
    const auto panels = factored<double>(on, reference::permuted(classic.damped_hessian, factor_order), 64);
    std::vector<std::int32_t> group;
    std::vector<std::int32_t> member;
    for (const auto column : factor_order) {
      group.push_back(classic.g_idx[static_cast<std::size_t>(column)]);
      member.push_back(column % 16);
    }
    auto layer = make_layer<double>(reference::permuted_columns(weights, factor_order), group, member, n / 16);
    layer.scales = classic.scales;
    layer.zeros = classic.zeros;
    solve_rows(on, panels, layer, {.grid = options.grid, .dynamic_grids = !act_order, .block = 32}, 0, weights.rows);

    EXPECT_EQ(layer.codes, reference::permuted_columns(classic.codes, factor_order)) << act_order;
    EXPECT_EQ(layer.scales, classic.scales) << act_order;
  }
}

class SolvePanel : public OnDevice {
 protected:
  void add_norms(DeviceTensors& on, const ConstAnyView<2>& factor, std::int64_t first, const ConstAnyView<2>& delta,
                 const ConstTensorView<double, 1>& extra, const TensorView<double, 1>& norms) {
    on.backend->weighted_norms(
        *on.stream, {.factor = factor, .first = first, .rows = {{delta, norms}}, .extra = extra, .row_tile = 32});
  }
};
INSTANTIATE_TEST_SUITE_P(, SolvePanel, ::testing::ValuesIn(test::available_devices()), test::device_name);

TEST_P(SolvePanel, HasBitsThatDependNeitherOnThreadsNorOnHowRowsAreSplitAtTiles) {
  const auto h = reference::random_hessian(200, 230, 7);
  const auto weights = reference::random_normal(257, 200, 8, 0.05);
  with_real_types([&]<class T>() {
    for (const bool dynamic : {false, true}) {
      const SolveSettings settings{
          .grid = {.bits = 3, .clip = Clip::mse}, .dynamic_grids = dynamic, .block = 32, .row_tile = 32};
      DeviceTensors one(GetParam(), 1);
      const auto panels = factored<T>(one, h, 64);
      const auto expected = solved(one, panels, weights, 16, settings);
      for (const int threads : {1, 2, 3}) {
        DeviceTensors on(GetParam(), threads);
        auto layer = expected;
        layer.delta = Matrix<T>(257, 200, T{9});
        layer.row_loss.assign(257, 0.0);

        solve_rows(on, panels, layer, settings, 0, 96);
        solve_rows(on, panels, layer, settings, 96, 161);

        EXPECT_EQ(layer.codes, expected.codes);
        EXPECT_EQ(layer.delta, expected.delta);
        EXPECT_EQ(layer.scales, expected.scales);
        EXPECT_EQ(layer.row_loss, expected.row_loss);
      }
    }
  });
}

TEST_P(SolvePanel, HasWeightedNormsWhoseBitsDependNeitherOnThreadsNorOnHowRowsAreSplitAtTiles) {
  const auto h = reference::random_hessian(130, 150, 9);
  const auto delta = reference::random_normal(100, 130, 10, 0.01);
  with_real_types([&]<class T>() {
    std::vector<std::vector<double>> results;
    for (const int threads : {1, 2, 3}) {
      DeviceTensors on(GetParam(), threads);
      const auto device_delta = on.upload(delta.as<T>());
      const auto extra = on.upload(std::vector<double>(130, 0.5));
      const auto norms = on.upload(std::vector<double>(100));
      const std::int64_t split = threads == 1 ? 100 : 32 * (threads - 1);
      for (const auto& panel : factored<T>(on, h, 64)) {
        const auto factor = on.upload(panel.values);
        for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, split}, {split, 100 - split}}) {
          add_norms(on, factor.view, panel.first, device_delta.view.slice_rows(first, rows), flat(extra),
                    flat(norms).slice_rows(first, rows));
        }
      }
      results.push_back(on.download(norms).data);
    }
    EXPECT_EQ(results[1], results[0]);
    EXPECT_EQ(results[2], results[0]);
  });
}

TEST_P(SolvePanel, HasWeightedNormsThatAreTheUndampedLoss) {
  struct Case {
    std::int64_t rows, n, width;
  };
  for (const auto& [rows, n, width] : {Case{35, 101, 32}, Case{300, 645, 320}}) {  // within a tile of a GPU; several
    const auto h = reference::random_hessian(n, n + 19, 11, 0);
    const auto delta = reference::random_normal(rows, n, 12, 0.01);
    auto damped = h;
    std::vector<double> extra(static_cast<std::size_t>(n));
    for (std::int64_t c = 0; c < n; ++c) {
      extra[static_cast<std::size_t>(c)] = 1.0 + 0.1 * static_cast<double>(c);
      damped(c, c) += extra[static_cast<std::size_t>(c)];
    }
    const auto weighted = reference::product(delta, h);
    const auto device_extra = upload(extra);
    with_real_types([&]<class T>() {
      const auto device_delta = upload(delta.as<T>(), 3);
      const auto norms = upload(std::vector<double>(static_cast<std::size_t>(rows), 100.0));

      for (const auto& panel : factored<T>(*this, damped, width)) {
        const auto factor = upload(panel.values, 5);
        add_norms(*this, factor.view, panel.first, device_delta.view, flat(device_extra), flat(norms));
      }

      // A GPU may round to fewer bits what only a record needs.
      const double share = !std::is_same_v<T, float> ? 1e-10 : GetParam().name == "cpu" ? 1e-5 : 5e-4;
      const auto got = download(norms);
      for (std::int64_t r = 0; r < rows; ++r) {
        double loss = 0;
        for (std::int64_t c = 0; c < n; ++c) {
          loss += weighted(r, c) * delta(r, c);
        }
        EXPECT_NEAR(got(0, r) - 100, loss, share * loss) << r << " of " << rows;
      }
    });
  }
}

TEST_P(SolvePanel, HasWeightedNormsOfSeveralMatricesThatAreThoseOfEach) {
  const auto h = reference::random_hessian(72, 90, 30);
  const auto extra = upload(std::vector<double>(72, 0.25));
  with_real_types([&]<class T>() {
    const auto panel = factored<T>(*this, h, 72)[0];
    const auto factor = upload(panel.values);
    const auto many = upload(reference::random_normal(70, 72, 31, 0.01).as<T>());
    const auto few = upload(reference::random_normal(3, 72, 32, 5).as<T>());
    std::vector<std::vector<double>> results;
    for (const bool together : {true, false}) {
      const auto norms = upload(std::vector<double>(73, 1.0));
      const auto of_many = flat(norms).slice_rows(0, 70);
      const auto of_few = flat(norms).slice_rows(70, 3);
      if (together) {
        backend->weighted_norms(
            *stream, {.factor = factor.view, .rows = {{many.view, of_many}, {few.view, of_few}}, .extra = flat(extra)});
      } else {
        backend->weighted_norms(*stream, {.factor = factor.view, .rows = {{few.view, of_few}}, .extra = flat(extra)});
        backend->weighted_norms(*stream, {.factor = factor.view, .rows = {{many.view, of_many}}, .extra = flat(extra)});
      }
      results.push_back(download(norms).data);
    }
    EXPECT_EQ(results[0], results[1]);
  });
}

TEST_P(SolvePanel, AddsToTheRowLoss) {
  const auto panels = factored<double>(*this, reference::random_hessian(40, 60, 13), 64);
  const auto weights = reference::random_normal(5, 40, 14, 0.05);
  const SolveSettings settings{.grid = {.clip = Clip::none}};
  auto layer = solved(*this, panels, weights, 20, settings);
  const auto once = layer.row_loss;

  solve_rows(*this, panels, layer, settings, 0, 5);

  for (std::size_t r = 0; r < 5; ++r) {
    EXPECT_DOUBLE_EQ(layer.row_loss[r], 2 * once[r]);
  }
}

TEST_P(SolvePanel, WritesNothingOutsideStridedMatrices) {
  const std::int64_t n = 150;
  const auto panels = factored<float>(*this, reference::random_hessian(n, 170, 23), 256);
  auto layer = make_layer<float>(reference::random_normal(37, n, 24, 0.05), std::vector<std::int32_t>(150),
                                 std::vector<std::int32_t>(150), 1);
  std::iota(layer.member.begin(), layer.member.end(), 0);
  layer.scales = Matrix<float>(37, 1, 0.0125f);
  layer.zeros = Matrix<std::uint8_t>(37, 1, 8);
  const SolveSettings settings{.block = 32};
  auto expected = layer;
  solve_rows(*this, panels, expected, settings, 0, 37);
  const auto factor = upload(panels[0].values, 3);
  const auto weights = upload(layer.weights, 5);
  const auto delta = upload(layer.delta, 7);
  const auto codes = upload(layer.codes, 9);
  const auto group = upload(layer.group);
  const auto member = upload(layer.member);
  const auto scales = upload(layer.scales, 2);
  const auto zeros = upload(layer.zeros, 1);
  const auto row_loss = upload(layer.row_loss);

  backend->solve_panel(*stream, {.grid = settings.grid,
                                 .block = settings.block,
                                 .first = 0,
                                 .factor = factor.view,
                                 .weights = weights.view,
                                 .delta = delta.view,
                                 .codes = codes.view,
                                 .group = flat(group),
                                 .member = flat(member),
                                 .scales = scales.view,
                                 .zeros = zeros.view,
                                 .row_loss = flat(row_loss)});

  EXPECT_EQ(download(codes), expected.codes);
  EXPECT_EQ(download(delta), expected.delta);
  EXPECT_EQ(download(scales), layer.scales);
  EXPECT_EQ(download(zeros), layer.zeros);
}

/// The whole chain on one device and on the CPU, wide enough for whatever a device does only for large panels.
TEST_P(SolvePanel, OfAWideLayerHasTheLossOfDoublePrecisionOnTheCpu) {
  const std::int64_t n = 640;
  const std::int64_t rows = 300;
  const auto h = reference::random_hessian(n, 700, 25);
  const auto weights = reference::random_normal(rows, n, 26, 0.05);
  const SolveSettings settings{.grid = {.clip = Clip::none}};
  DeviceTensors cpu(test::available_devices().front(), 2);
  const auto exact = solved(cpu, factored<double>(cpu, h, 256), weights.as<float>().as<double>(), 128, settings);

  const auto layer = solved(*this, factored<float>(*this, h, 256), weights, 128, settings);

  std::int64_t codes_that_differ = 0;
  for (std::size_t i = 0; i < layer.codes.data.size(); ++i) {
    codes_that_differ += layer.codes.data[i] != exact.codes.data[i];
  }
  EXPECT_LE(codes_that_differ, rows * n / 50);
  const double loss = std::accumulate(layer.row_loss.begin(), layer.row_loss.end(), 0.0);
  const double exact_loss = std::accumulate(exact.row_loss.begin(), exact.row_loss.end(), 0.0);
  EXPECT_NEAR(loss, exact_loss, 2e-3 * exact_loss);
}

TEST_P(SolvePanel, DynamicGridsWithHessianClipUseTheGroupsBlock) {
  const auto h = reference::random_hessian(32, 50, 15);
  const auto panels = factored<float>(*this, h, 32);
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  group_from_end(32, 16, group, member);
  auto layer = make_layer<float>(reference::random_normal(9, 32, 16, 0.05), group, member, 2);
  const GridSpec spec{.bits = 3, .clip = Clip::hessian};
  std::vector<float> entries(2 * 16 * 16);
  for (std::int64_t a = 0; a < 32; ++a) {
    for (std::int64_t b = 0; b < 32; ++b) {
      const auto i = static_cast<std::size_t>(a);
      const auto j = static_cast<std::size_t>(b);
      if (group[i] == group[j]) {
        entries[static_cast<std::size_t>(group[i] * 256 + member[i] * 16 + member[j])] = static_cast<float>(h(a, b));
      }
    }
  }
  const auto memory = upload(entries);
  const ConstTensorView<float, 3> blocks(memory.view.data, {2, 16, 16});
  auto from_weights = layer;
  find_layer_grids(*this, from_weights, spec, blocks);

  solve_rows(*this, panels, layer, {.grid = spec, .dynamic_grids = true, .block = 32}, 0, 9, blocks);

  // Nothing was updated before the first group, much before the second.
  std::int64_t equal = 0;
  for (std::int64_t r = 0; r < 9; ++r) {
    EXPECT_EQ(layer.scales(r, 0), from_weights.scales(r, 0)) << r;
    equal += layer.scales(r, 1) == from_weights.scales(r, 1);
  }
  EXPECT_LT(equal, 9);
}

TEST_P(SolvePanel, IsRefusedWithGotAndExpected) {
  const auto h = reference::random_hessian(48, 60, 17);
  const auto weights = reference::random_normal(3, 48, 18, 0.05);
  const auto panels = factored<double>(*this, h, 32);
  EXPECT_THAT(message_of([&] { solved(*this, panels, weights, 8, {.block = 24}); }),
              HasSubstr("the panel holds columns [16, 48) of 48, expected whole blocks of 24"));
  EXPECT_THAT(message_of([&] { solved(*this, panels, weights, 8, {.block = 32, .row_tile = 0}); }),
              HasSubstr("row_tile = 0, expected both to be positive"));
  EXPECT_THAT(message_of([&] { solved(*this, panels, weights, 8, {.grid = {.bits = 1}, .block = 32}); }),
              HasSubstr("bits = 1, expected 2, 3, 4 or 8"));
}

TEST_P(SolvePanel, RefusesDynamicGroupsThatCrossBlocks) {
  const auto panels = factored<double>(*this, reference::random_hessian(48, 60, 19), 16);
  const auto weights = reference::random_normal(3, 48, 20, 0.05);
  EXPECT_THAT(message_of([&] { solved(*this, panels, weights, 24, {.dynamic_grids = true, .block = 16}); }),
              HasSubstr("group 0 has columns from 24 to 47, expected all of them in the block [32, 48)"));
}

TEST_P(SolvePanel, RefusesAFactorWithAZeroOnItsDiagonal) {
  auto panels = factored<double>(*this, reference::random_hessian(48, 60, 21), 16);
  panels[1].values(3, 3) = 0;
  EXPECT_THAT(message_of([&] { solved(*this, panels, reference::random_normal(3, 48, 22, 0.05), 8, {.block = 16}); }),
              HasSubstr("the factor's diagonal is 0 at column 19"));
}

TEST_P(SolvePanel, RefusesAGroupWithoutAScale) {
  const auto panels = factored<float>(*this, reference::random_hessian(8, 20, 27), 8);
  auto layer = make_layer<float>(reference::random_normal(3, 8, 28, 0.05), {0, 0, 1, 1, 0, 2, 0, 0},
                                 std::vector<std::int32_t>(8), 2);
  EXPECT_THAT(message_of([&] { solve_rows(*this, panels, layer, {}, 0, 3); }),
              HasSubstr("group[5] = 2, expected an index in [0, 2)"));
}

}  // namespace
}  // namespace gptqd
