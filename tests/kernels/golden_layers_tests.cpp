/// @file The 42 solves of tests/golden/gptq/layers.safetensors, made with the paper's published code.
#include <algorithm>
#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>

#include "io/safetensors.hpp"
#include "tests/kernels/quant_support.hpp"
#include "tests/reference/gptq.hpp"
#include "tests/support/paths.hpp"

namespace gptqd {
namespace {

using test::Layer;
using test::Matrix;

/// One configuration of one layer, as layers.json lists it.
struct Solve {
  std::string layer;
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  int bits = 0;
  std::int64_t group_size = 0;
  bool symmetric = false;
  bool act_order = false;
  bool static_groups = false;
  bool has_own_codes_f64 = false;
  bool has_own_grids_f64 = false;
  std::int64_t rows_differing = 0;  // between the published code in f32 and in f64
  double loss_f64 = 0;

  std::string key() const { return layer + "." + name; }
  std::int64_t group_columns() const { return group_size < 0 ? cols : group_size; }
};

void PrintTo(const Solve& solve, std::ostream* out) { *out << solve.key(); }

std::vector<Solve> all_solves() {
  std::ifstream file(test::source_path("tests/golden/gptq/layers.json"));
  const auto json = nlohmann::json::parse(file);
  std::vector<Solve> solves;
  for (const auto& layer : json.at("layers")) {
    for (const auto& solve : layer.at("solves")) {
      solves.push_back({.layer = layer.at("layer"),
                        .name = solve.at("name"),
                        .rows = layer.at("rows"),
                        .cols = layer.at("cols"),
                        .bits = solve.at("bits"),
                        .group_size = solve.at("group_size"),
                        .symmetric = solve.at("sym"),
                        .act_order = solve.at("act_order"),
                        .static_groups = solve.at("static_groups"),
                        .has_own_codes_f64 = solve.at("codes_differing_f32_f64") > 0.0,
                        .has_own_grids_f64 = !solve.at("grids_equal_f32_f64"),
                        .rows_differing = solve.at("rows_differing"),
                        .loss_f64 = solve.at("loss_f64")});
    }
  }
  return solves;
}

const io::SafetensorsFile& golden_file() {
  static const io::SafetensorsFile file(test::source_path("tests/golden/gptq/layers.safetensors"));
  return file;
}

template <class T>
Matrix<T> read(const std::string& name) {
  const auto& info = golden_file().at(name);
  Matrix<T> matrix(info.shape.at(0), info.shape.at(1));
  require(info.bytes == static_cast<std::int64_t>(matrix.data.size() * sizeof(T)),
          name + ": another type than expected");
  golden_file().read(info, std::as_writable_bytes(std::span(matrix.data)));
  return matrix;
}

Matrix<float> read_scales(const std::string& name) {
  const auto halves = read<Half>(name);
  Matrix<float> scales(halves.rows, halves.cols);
  std::transform(halves.data.begin(), halves.data.end(), scales.data.begin(), [](Half half) { return to_float(half); });
  return scales;
}

/// What the published code does before it solves: dead columns, order, damping.
struct Prepared {
  Matrix<double> live_weights;             // dead columns are zero; original order
  Matrix<double> damped;                   // factor order
  std::vector<std::int32_t> factor_order;  // factor_order[a] = original column
};

Prepared prepare(const Solve& solve, const Matrix<double>& weights, const Matrix<double>& hessian) {
  Prepared prepared{weights, hessian, std::vector<std::int32_t>(static_cast<std::size_t>(solve.cols))};
  auto& h = prepared.damped;
  double mean = 0;
  for (std::int64_t c = 0; c < solve.cols; ++c) {
    if (h(c, c) == 0) {
      h(c, c) = 1;
      for (std::int64_t r = 0; r < solve.rows; ++r) {
        prepared.live_weights(r, c) = 0;
      }
    }
    mean += h(c, c) / static_cast<double>(solve.cols);
  }
  std::iota(prepared.factor_order.begin(), prepared.factor_order.end(), 0);
  if (solve.act_order) {
    prepared.factor_order = reference::descending_diagonal(h);
  }
  std::reverse(prepared.factor_order.begin(), prepared.factor_order.end());
  for (std::int64_t c = 0; c < solve.cols; ++c) {
    h(c, c) += 0.01 * mean;
  }
  h = reference::permuted(h, prepared.factor_order);
  return prepared;
}

/// The layer solved by the kernels, codes and delta in original column order.
template <class T>
Layer<T> solve_by_kernels(const Solve& solve, std::int64_t panel_columns) {
  test::DeviceTensors cpu(make_cpu_backend({.threads = 2}));
  const auto weights = read<float>(solve.layer + ".weight").as<double>();
  const auto prepared = prepare(solve, weights, read<double>(solve.layer + ".hessian"));
  const auto size = solve.group_columns();
  std::vector<std::int32_t> group;
  std::vector<std::int32_t> member;
  for (const auto column : prepared.factor_order) {
    group.push_back(static_cast<std::int32_t>(column / size));
    member.push_back(static_cast<std::int32_t>(column % size));
  }
  auto layer = test::make_layer<T>(reference::permuted_columns(prepared.live_weights, prepared.factor_order), group,
                                   member, solve.cols / size);
  const GridSpec spec{
      .bits = solve.bits, .symmetric = solve.symmetric, .clip = Clip::none, .published_symmetric = true};
  const bool per_channel = solve.group_size < 0;
  if (per_channel || solve.static_groups) {
    // Per-channel grids come from the weights as they are, group grids from those without dead columns.
    auto source = layer;
    if (per_channel) {
      source.weights = reference::permuted_columns(weights, prepared.factor_order).template as<T>();
    }
    test::find_layer_grids(cpu, source, spec);
    layer.scales = source.scales;
    layer.zeros = source.zeros;
  }
  auto panels = test::cut_panels<T>(prepared.damped, panel_columns);
  EXPECT_EQ(test::factor_panels(cpu, panels), 0);
  test::solve_rows(cpu, panels, layer, {.grid = spec, .dynamic_grids = !per_channel && !solve.static_groups}, 0,
                   solve.rows);

  std::vector<std::int32_t> back(prepared.factor_order.size());
  for (std::size_t a = 0; a < back.size(); ++a) {
    back[static_cast<std::size_t>(prepared.factor_order[a])] = static_cast<std::int32_t>(a);
  }
  layer.codes = reference::permuted_columns(layer.codes, back);
  return layer;
}

std::vector<std::int32_t> trivial_g_idx(const Solve& solve) {
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(solve.cols));
  for (std::size_t c = 0; c < g_idx.size(); ++c) {
    g_idx[c] = static_cast<std::int32_t>(static_cast<std::int64_t>(c) / solve.group_columns());
  }
  return g_idx;
}

template <class T>
double loss_of(const Solve& solve, const Layer<T>& layer) {
  return reference::layer_loss(read<float>(solve.layer + ".weight").as<double>(),
                               read<double>(solve.layer + ".hessian"), layer.codes, layer.scales, layer.zeros,
                               trivial_g_idx(solve));
}

std::int64_t rows_that_differ(const Matrix<std::uint8_t>& a, const Matrix<std::uint8_t>& b) {
  std::int64_t rows = 0;
  for (std::int64_t r = 0; r < a.rows; ++r) {
    rows += !std::equal(a.view().row(r), a.view().row(r) + a.cols, b.view().row(r));
  }
  return rows;
}

class GoldenLayers : public ::testing::TestWithParam<Solve> {
 protected:
  Matrix<std::uint8_t> codes_f64() const {
    return read<std::uint8_t>(GetParam().key() + (GetParam().has_own_codes_f64 ? ".codes_f64" : ".codes_f32"));
  }
  Matrix<float> scales_f64() const {
    return read_scales(GetParam().key() + (GetParam().has_own_grids_f64 ? ".scales_f64" : ".scales_f32"));
  }
  Matrix<std::uint8_t> zeros_f64() const {
    return read<std::uint8_t>(GetParam().key() + (GetParam().has_own_grids_f64 ? ".zeros_f64" : ".zeros_f32"));
  }
};
/// Layers on which naive code is fast.
class SmallGoldenLayers : public GoldenLayers {};

std::vector<Solve> small_solves() {
  auto solves = all_solves();
  std::erase_if(solves, [](const Solve& solve) { return solve.cols > 256 || solve.rows > 256; });
  return solves;
}

std::string solve_name(const ::testing::TestParamInfo<Solve>& info) {
  auto name = info.param.key();
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(, GoldenLayers, ::testing::ValuesIn(all_solves()), solve_name);
INSTANTIATE_TEST_SUITE_P(, SmallGoldenLayers, ::testing::ValuesIn(small_solves()), solve_name);

TEST(GoldenLayersFile, HoldsFortyTwoSolves) {
  EXPECT_EQ(all_solves().size(), 42u);
  EXPECT_EQ(small_solves().size(), 30u);
}

TEST_P(GoldenLayers, InDoublePrecisionHaveThePublishedCodesAndGrids) {
  const auto layer = solve_by_kernels<double>(GetParam(), 256);

  EXPECT_EQ(layer.scales, scales_f64());
  EXPECT_EQ(layer.zeros, zeros_f64());
  EXPECT_EQ(layer.codes, codes_f64()) << rows_that_differ(layer.codes, codes_f64()) << " rows differ";
  EXPECT_NEAR(loss_of(GetParam(), layer), GetParam().loss_f64, 1e-6 * GetParam().loss_f64);
}

TEST_P(GoldenLayers, InSinglePrecisionComeAsCloseAsThePublishedCode) {
  const auto layer = solve_by_kernels<float>(GetParam(), 128);

  EXPECT_NEAR(loss_of(GetParam(), layer), GetParam().loss_f64, 1e-3 * GetParam().loss_f64);
  EXPECT_LE(rows_that_differ(layer.codes, codes_f64()), GetParam().rows_differing + (GetParam().rows + 99) / 100);
}

TEST_P(SmallGoldenLayers, AreWhatTheReferenceOfOurTestsComputes) {
  const auto& solve = GetParam();
  const auto result = reference::gptq(
      read<float>(solve.layer + ".weight").as<double>(), read<double>(solve.layer + ".hessian"),
      {.grid = {.bits = solve.bits, .symmetric = solve.symmetric, .clip = Clip::none, .published_symmetric = true},
       .group_size = solve.group_size,
       .act_order = solve.act_order,
       .static_groups = solve.static_groups});

  EXPECT_EQ(result.scales, scales_f64());
  EXPECT_EQ(result.zeros, zeros_f64());
  EXPECT_EQ(result.codes, codes_f64());
}

}  // namespace
}  // namespace gptqd
