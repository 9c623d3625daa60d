#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "comm/tree_sum.hpp"
#include "gptq/group_memory.hpp"
#include "tests/gptq/error_of.hpp"
#include "tests/gptq/support.hpp"
#include "tests/reference/gptq.hpp"

namespace gptqd::gptq {
namespace {

using test::error_of;
using test::HostLinear;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Partition small_cuts{.leaves = 4, .panel_columns = 32, .row_tile = 16};

/// One linear and the activations before it.
struct Layer {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t tokens;
  std::vector<float> weight = test::normal(rows * cols, 11);
  std::vector<float> x = test::activations(tokens, cols, 12);

  std::vector<double> hessian() const { return test::gram(x, cols); }
  double loss_of(const HostLinear& result, int bits) const {
    const auto h = hessian();
    return test::weighted_norm<double>(test::errors_of(result, weight, rows, cols, bits), h, cols) /
           test::weighted_norm<float>(weight, h, cols);
  }
};

/// The activations cut into `leaves` leaves of unequal length, each into chunks of at most `chunk` tokens.
std::vector<LeafInput> cut(AnyView<2> x, int leaves, std::int64_t chunk) {
  std::vector<LeafInput> result;
  for (int leaf = 0; leaf < leaves; ++leaf) {
    const std::int64_t first = x.rows() * leaf * leaf / (leaves * leaves);
    const std::int64_t end = x.rows() * (leaf + 1) * (leaf + 1) / (leaves * leaves);
    LeafInput input{.leaf = leaf, .chunks = {}};
    for (std::int64_t t = first; t < end; t += chunk) {
      input.chunks.push_back(x.slice_rows(t, std::min(chunk, end - t)));
    }
    result.push_back(std::move(input));
  }
  return result;
}

class QuantizeGroupTest : public ::testing::Test {
 protected:
  HostLinear quantize(const Layer& layer, const QuantSpec& spec, const Partition& partition = small_cuts) {
    const test::DeviceMatrix<float> x(local.team(), layer.tokens, layer.cols, layer.x);
    const HessianInput input{
        .leaves = cut(x.view(), partition.leaves, 13), .tokens = layer.tokens, .matrix = {}, .find_non_finite = {}};
    return quantize(layer, input, spec, partition);
  }
  HostLinear quantize_with_matrix(const Layer& layer, const std::vector<double>& h, const QuantSpec& spec) {
    const test::DeviceMatrix<double> matrix(local.team(), layer.cols, layer.cols, h);
    const HessianInput input{.leaves = {}, .tokens = layer.tokens, .matrix = matrix.view(), .find_non_finite = {}};
    return quantize(layer, input, spec, small_cuts);
  }
  HostLinear quantize(const Layer& layer, const std::optional<HessianInput>& input, const QuantSpec& spec,
                      const Partition& partition = small_cuts) {
    const test::DeviceMatrix<float> w(local.team(), layer.rows, layer.cols, layer.weight);
    const std::vector<LinearWeight> linears{{.name = "fc1", .weight = w.view()}};
    return test::download(local.team(), quantize_group(local.team(), linears, input, spec, partition).front(),
                          spec.bits);
  }

  test::LocalTeam local;
};

QuantSpec small_spec() {
  QuantSpec spec;
  spec.group_size = 32;
  spec.solver = DType::f64;
  return spec;
}

struct NaiveCase {
  const char* name;
  int bits;
  std::int64_t group;
  bool symmetric;
  ActOrder order;
  Clip clip = Clip::none;
};

class AgainstThePaper : public QuantizeGroupTest, public ::testing::WithParamInterface<NaiveCase> {};

TEST_P(AgainstThePaper, DoubleSolverGivesTheSameCodes) {
  const auto& c = GetParam();
  const Layer layer{.rows = 37, .cols = 192, .tokens = 300};
  const auto h = layer.hessian();
  auto spec = small_spec();
  spec.bits = c.bits;
  spec.group_size = c.group;
  spec.symmetric = c.symmetric;
  spec.act_order = c.order;
  spec.clip = c.clip;

  const auto got = quantize_with_matrix(layer, h, spec);

  const auto expected =
      reference::gptq(test::matrix<double>(layer.weight, layer.cols), test::matrix<double>(h, layer.cols),
                      {.grid = spec.grid(),
                       .group_size = c.group,
                       .act_order = c.order != ActOrder::none,
                       .static_groups = c.order == ActOrder::fixed || c.group < 0,
                       .damping = spec.damping});
  EXPECT_EQ(got.g_idx, expected.g_idx);
  EXPECT_EQ(got.scales, expected.scales.data);
  EXPECT_EQ(got.zeros, expected.zeros.data);
  EXPECT_EQ(test::unpack(got.packed, layer.rows, layer.cols, c.bits), expected.codes.data);
}

INSTANTIATE_TEST_SUITE_P(, AgainstThePaper,
                         ::testing::Values(NaiveCase{"Natural4", 4, 32, true, ActOrder::none},
                                           NaiveCase{"NaturalAsymmetric2", 2, 64, false, ActOrder::none},
                                           NaiveCase{"GroupLongerThanABlock", 3, 192, false, ActOrder::none},
                                           NaiveCase{"GroupNotDividingABlock", 4, 48, true, ActOrder::none},
                                           NaiveCase{"Static3", 3, 32, false, ActOrder::fixed},
                                           NaiveCase{"Static8", 8, 16, true, ActOrder::fixed},
                                           NaiveCase{"Dynamic4", 4, 32, false, ActOrder::dynamic},
                                           NaiveCase{"DynamicLong", 4, 96, true, ActOrder::dynamic},
                                           NaiveCase{"Clipped", 3, 32, false, ActOrder::none, Clip::mse},
                                           NaiveCase{"ClippedStatic", 2, 64, true, ActOrder::fixed, Clip::mse},
                                           NaiveCase{"WholeRow", 4, -1, false, ActOrder::none},
                                           NaiveCase{"WholeRowOrdered", 3, -1, true, ActOrder::dynamic}),
                         [](const auto& test) { return test.param.name; });

TEST_F(QuantizeGroupTest, ActivationsGiveNearlyTheCodesOfTheirMatrix) {
  const Layer layer{.rows = 40, .cols = 160, .tokens = 500};
  auto spec = small_spec();
  spec.solver = DType::f32;

  const auto from_activations = quantize(layer, spec);
  const auto from_matrix = quantize_with_matrix(layer, layer.hessian(), spec);

  EXPECT_EQ(from_activations.scales, from_matrix.scales);
  EXPECT_NEAR(from_activations.layer_record.loss.value(), from_matrix.layer_record.loss.value(),
              1e-2 * from_matrix.layer_record.loss.value());
}

TEST_F(QuantizeGroupTest, RecordsTheLossOfTheUndampedHessian) {
  const Layer layer{.rows = 24, .cols = 96, .tokens = 200};
  for (const auto method : {Method::gptq, Method::rtn, Method::obq}) {
    for (const auto solver : {DType::f32, DType::f64}) {
      auto spec = small_spec();
      spec.bits = 3;
      spec.method = method;
      spec.solver = solver;

      const auto got = quantize(layer, spec);

      const auto& record = got.layer_record;
      const double expected = layer.loss_of(got, 3);
      EXPECT_NEAR(record.loss.value(), expected, 1e-4 * expected) << name_of(method);
      EXPECT_NEAR(record.weight_norm.value(), test::weighted_norm<float>(layer.weight, layer.hessian(), 96),
                  1e-5 * record.weight_norm.value());
      EXPECT_EQ(record.tokens, 200);
      EXPECT_EQ(record.damping, 0.01);
      EXPECT_FALSE(record.fallback);
    }
  }
}

TEST_F(QuantizeGroupTest, GptqBeatsRoundToNearestAndObqBeatsGptq) {
  Layer layer{.rows = 24, .cols = 96, .tokens = 200};
  // OBQ's greedy order is the better one where columns are alike and hardly correlated, and nothing is clipped.
  layer.x = test::normal(200 * 96, 13);
  auto spec = small_spec();
  spec.clip = Clip::none;

  const auto gptq = quantize(layer, spec).layer_record;
  spec.method = Method::obq;
  const auto obq = quantize(layer, spec).layer_record;
  spec.method = Method::rtn;
  const auto rtn = quantize(layer, spec).layer_record;

  EXPECT_LT(gptq.loss.value(), 0.9 * rtn.loss.value());
  EXPECT_LT(obq.loss.value(), gptq.loss.value());
  EXPECT_EQ(rtn.loss, rtn.rtn_loss);
  EXPECT_NEAR(gptq.rtn_loss.value(), rtn.loss.value(), 1e-9);
  EXPECT_EQ(obq.rtn_loss, rtn.loss);
}

TEST_F(QuantizeGroupTest, RoundToNearestNeedsNoCalibration) {
  const Layer layer{.rows = 20, .cols = 64, .tokens = 100};
  auto spec = small_spec();
  spec.method = Method::rtn;

  const auto without = quantize(layer, std::nullopt, spec);
  const auto with = quantize(layer, spec);

  EXPECT_EQ(without.packed, with.packed);
  EXPECT_FALSE(without.layer_record.loss.has_value());
  EXPECT_FALSE(without.layer_record.weight_norm.has_value());
  EXPECT_EQ(without.layer_record.tokens, 0);
  EXPECT_TRUE(with.layer_record.loss.has_value());
}

TEST_F(QuantizeGroupTest, DynamicOrderIsWrittenToTheGroupIndex) {
  const Layer layer{.rows = 16, .cols = 96, .tokens = 200};
  auto spec = small_spec();
  spec.act_order = ActOrder::dynamic;

  const auto got = quantize(layer, spec);

  std::vector<int> members(3, 0);
  for (const auto g : got.g_idx) {
    ++members.at(static_cast<std::size_t>(g));
  }
  EXPECT_THAT(members, ::testing::Each(32));
  // The loudest column of all is in the first group, the quietest in the last.
  const auto h = layer.hessian();
  std::vector<double> diagonal;
  for (std::size_t c = 0; c < 96; ++c) {
    diagonal.push_back(h[c * 97]);
  }
  EXPECT_EQ(got.g_idx[static_cast<std::size_t>(std::max_element(diagonal.begin(), diagonal.end()) - diagonal.begin())],
            0);
  EXPECT_EQ(got.g_idx[static_cast<std::size_t>(std::min_element(diagonal.begin(), diagonal.end()) - diagonal.begin())],
            2);
}

TEST_F(QuantizeGroupTest, StaticOrderKeepsGridsOfTheNaturalOne) {
  const Layer layer{.rows = 16, .cols = 96, .tokens = 200};
  auto spec = small_spec();
  const auto ordered = quantize(layer, spec);
  spec.method = Method::rtn;
  const auto rounded = quantize(layer, spec);

  EXPECT_EQ(ordered.scales, rounded.scales);
  EXPECT_EQ(ordered.g_idx, rounded.g_idx);
  EXPECT_NE(ordered.packed, rounded.packed);
}

TEST_F(QuantizeGroupTest, DequantizedWeightsAreScaleTimesCodeLessZero) {
  const Layer layer{.rows = 18, .cols = 64, .tokens = 100};
  auto spec = small_spec();
  spec.act_order = ActOrder::dynamic;
  spec.symmetric = false;
  const test::DeviceMatrix<float> w(local.team(), 18, 64, layer.weight);
  const test::DeviceMatrix<float> x(local.team(), 100, 64, layer.x);
  const std::vector<LinearWeight> linears{{.name = "fc1", .weight = w.view()}};
  const HessianInput input{.leaves = cut(x.view(), 4, 50), .tokens = 100, .matrix = {}, .find_non_finite = {}};
  const auto results = quantize_group(local.team(), linears, input, spec, small_cuts);
  const Buffer dense = local.backend().allocate(18 * 64 * 4);

  results.front().dequantize(local.backend(), local.stream(), 4, DType::f32, dense.any_view<2>(DType::f32, {18, 64}));

  const auto got = test::download<float>(local.team(), dense, 18 * 64);
  const auto errors = test::errors_of(test::download(local.team(), results.front(), 4), layer.weight, 18, 64, 4);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], static_cast<double>(layer.weight[i]) + errors[i], 1e-6) << i;
  }
}

TEST_F(QuantizeGroupTest, LinearsOfOneGroupAreSolvedAsOneMatrix) {
  const Layer all{.rows = 50, .cols = 96, .tokens = 200};
  const auto spec = small_spec();
  const auto together = quantize(all, spec);
  const test::DeviceMatrix<float> w(local.team(), 50, 96, all.weight);
  const test::DeviceMatrix<float> x(local.team(), 200, 96, all.x);
  // Tiles of 16 rows straddle the linears.
  const std::vector<LinearWeight> linears{{.name = "q", .weight = w.view().slice_rows(0, 5)},
                                          {.name = "k", .weight = w.view().slice_rows(5, 1)},
                                          {.name = "v", .weight = w.view().slice_rows(6, 44)}};
  const HessianInput input{.leaves = cut(x.view(), 4, 13), .tokens = 200, .matrix = {}, .find_non_finite = {}};

  const auto parts = test::download(local.team(), quantize_group(local.team(), linears, input, spec, small_cuts), 4);

  HostLinear joined;
  double loss = 0;
  for (const auto& part : parts) {
    joined.packed.insert(joined.packed.end(), part.packed.begin(), part.packed.end());
    joined.scales.insert(joined.scales.end(), part.scales.begin(), part.scales.end());
    loss += part.layer_record.loss.value() * part.layer_record.weight_norm.value();
  }
  EXPECT_EQ(joined.packed, together.packed);
  EXPECT_EQ(joined.scales, together.scales);
  EXPECT_NEAR(loss, together.layer_record.loss.value() * together.layer_record.weight_norm.value(), 1e-9 * loss);
  EXPECT_EQ(parts[2].layer_record.name, "v");
  EXPECT_EQ(parts[2].layer_record.rows, 44);
}

TEST_F(QuantizeGroupTest, TheNumberOfThreadsDoesNotShow) {
  const Layer layer{.rows = 70, .cols = 192, .tokens = 300};
  for (const auto order : {ActOrder::none, ActOrder::fixed}) {
    auto spec = small_spec();
    spec.solver = DType::f32;
    spec.act_order = order;
    std::vector<HostLinear> results;
    for (const int threads : {1, 2, 3}) {
      test::LocalTeam team(threads);
      const test::DeviceMatrix<float> w(team.team(), layer.rows, layer.cols, layer.weight);
      const test::DeviceMatrix<float> x(team.team(), layer.tokens, layer.cols, layer.x);
      const std::vector<LinearWeight> linears{{.name = "fc1", .weight = w.view()}};
      const HessianInput input{.leaves = cut(x.view(), 4, 64), .tokens = 300, .matrix = {}, .find_non_finite = {}};
      results.push_back(test::download(
          team.team(), quantize_group(team.team(), linears, input, spec, small_cuts).front(), spec.bits));
    }
    EXPECT_TRUE(results[0] == results[1]);
    EXPECT_TRUE(results[0] == results[2]);
  }
}

TEST_F(QuantizeGroupTest, HessianClipLowersTheLoss) {
  const Layer layer{.rows = 32, .cols = 96, .tokens = 300};
  for (const auto order : {ActOrder::none, ActOrder::fixed, ActOrder::dynamic}) {
    auto spec = small_spec();
    spec.bits = 3;
    spec.act_order = order;
    spec.clip = Clip::none;
    const auto unclipped = quantize(layer, spec).layer_record;
    spec.clip = Clip::hessian;

    const auto clipped = quantize(layer, spec).layer_record;

    EXPECT_LT(clipped.loss.value(), unclipped.loss.value()) << name_of(order);
    EXPECT_LT(clipped.rtn_loss.value(), unclipped.rtn_loss.value()) << name_of(order);
  }
}

TEST_F(QuantizeGroupTest, DeadColumnsAreRoundedAndCounted) {
  Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    layer.x[static_cast<std::size_t>(t * 64 + 3)] = 0;
    layer.x[static_cast<std::size_t>(t * 64 + 40)] = 0;
  }
  const auto spec = small_spec();

  const auto got = quantize(layer, spec);

  EXPECT_EQ(got.layer_record.dead_columns, 2);
  const auto errors = test::errors_of(got, layer.weight, 16, 64, 4);
  for (std::size_t r = 0; r < 16; ++r) {
    for (const std::size_t c : {std::size_t{3}, std::size_t{40}}) {
      // Within half a step, or clipped.
      const double step = static_cast<double>(got.scales[r * 2 + c / 32]);
      const double w = std::abs(static_cast<double>(layer.weight[r * 64 + c]));
      EXPECT_LE(std::abs(errors[r * 64 + c]), std::max(0.5 * step, w - 7 * step) + 1e-6) << r << ", " << c;
    }
  }
  EXPECT_NEAR(got.layer_record.loss.value(), layer.loss_of(got, 4), 1e-5 * got.layer_record.loss.value());
}

TEST_F(QuantizeGroupTest, ReferenceModeZeroesDeadColumns) {
  Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    layer.x[static_cast<std::size_t>(t * 64 + 3)] = 0;
  }
  auto spec = small_spec();
  spec.reference = true;
  spec.clip = Clip::none;
  for (const auto order : {ActOrder::none, ActOrder::fixed}) {
    spec.act_order = order;

    const auto got = quantize(layer, spec);

    const auto codes = test::unpack(got.packed, 16, 64, 4);
    for (std::size_t r = 0; r < 16; ++r) {
      EXPECT_EQ(codes[r * 64 + 3], got.zeros[r * 2]) << r;
    }
  }
}

TEST_F(QuantizeGroupTest, AllColumnsDeadIsRoundToNearestWithoutLosses) {
  Layer layer{.rows = 16, .cols = 64, .tokens = 20};
  std::fill(layer.x.begin(), layer.x.end(), 0.0f);
  auto spec = small_spec();

  const auto got = quantize(layer, spec);
  spec.method = Method::rtn;
  const auto rounded = quantize(layer, std::nullopt, spec);

  EXPECT_EQ(got.packed, rounded.packed);
  EXPECT_EQ(got.layer_record.dead_columns, 64);
  EXPECT_FALSE(got.layer_record.loss.has_value());
}

TEST_F(QuantizeGroupTest, LeavesWithoutTokensCountAsZero) {
  const Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  const test::DeviceMatrix<float> x(local.team(), 150, 64, layer.x);
  HessianInput input{.leaves = {}, .tokens = 150, .matrix = {}, .find_non_finite = {}};
  for (int leaf = 0; leaf < 4; ++leaf) {
    input.leaves.push_back({.leaf = leaf, .chunks = {}});
  }
  input.leaves[2].chunks = {x.view()};

  const auto got = quantize(layer, input, small_spec());

  EXPECT_NEAR(got.layer_record.loss.value(), layer.loss_of(got, 4), 1e-4 * got.layer_record.loss.value());
}

TEST_F(QuantizeGroupTest, TheLadderIsRecorded) {
  const Layer layer{.rows = 16, .cols = 32, .tokens = 10};
  std::vector<double> h(32 * 32, 0.0);
  for (std::size_t i = 0; i < 32; ++i) {
    h[i * 33] = 1;
  }
  h[1] = h[32] = 1.05;  // eigenvalue −0.05: λ = 0.01 is too little, 0.1 enough

  const auto record = quantize_with_matrix(layer, h, small_spec()).layer_record;

  EXPECT_EQ(record.retries, 1);
  EXPECT_DOUBLE_EQ(record.damping, 0.1);
  EXPECT_FALSE(record.fallback);
}

TEST_F(QuantizeGroupTest, AnIndefiniteHessianFallsBackToRoundToNearest) {
  const Layer layer{.rows = 16, .cols = 32, .tokens = 10};
  std::vector<double> h(32 * 32, 0.0);
  for (std::size_t i = 0; i < 32; ++i) {
    h[i * 33] = 1;
  }
  h[1] = h[32] = 10;
  for (const auto order : {ActOrder::none, ActOrder::fixed, ActOrder::dynamic}) {
    auto spec = small_spec();
    spec.act_order = order;

    const auto got = quantize_with_matrix(layer, h, spec);
    spec.method = Method::rtn;
    spec.act_order = ActOrder::none;
    const auto rounded = quantize(layer, std::nullopt, spec);

    EXPECT_TRUE(got.layer_record.fallback);
    EXPECT_EQ(got.layer_record.retries, 2);
    EXPECT_FALSE(got.layer_record.loss.has_value());
    EXPECT_EQ(got.packed, rounded.packed) << name_of(order);
  }
}

TEST_F(QuantizeGroupTest, NonFiniteActivationsNameLayerAndSample) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    for (const auto order : {ActOrder::none, ActOrder::fixed}) {
      Layer layer{.rows = 16, .cols = 64, .tokens = 150};
      layer.x[70] = bad;
      const test::DeviceMatrix<float> x(local.team(), 150, 64, layer.x);
      auto spec = small_spec();
      spec.act_order = order;
      HessianInput input{.leaves = cut(x.view(), 4, 50), .tokens = 150, .matrix = {}, .find_non_finite = [] {
                           return std::optional<std::string>("activations of sample 17 hold nan");
                         }};

      const auto named = error_of([&] { quantize(layer, input, spec); });
      input.find_non_finite = {};
      const auto unnamed = error_of([&] { quantize(layer, input, spec); });

      EXPECT_EQ(named.kind(), ErrorKind::input);
      EXPECT_THAT(named.message(), HasSubstr("Hessian of fc1 is not finite: activations of sample 17 hold nan"));
      EXPECT_THAT(unnamed.message(), HasSubstr("Hessian of fc1 is not finite: 1 of 64 diagonal values"));
    }
  }
}

TEST_F(QuantizeGroupTest, NonFiniteWeightsAreAnError) {
  Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  layer.weight[5 * 64 + 1] = std::numeric_limits<float>::quiet_NaN();
  for (const auto method : {Method::gptq, Method::rtn, Method::obq}) {
    auto spec = small_spec();
    spec.method = method;

    const auto error = error_of([&] { quantize(layer, spec); });

    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.message(), HasSubstr("fc1: row 5 holds weights"));
  }
}

TEST_F(QuantizeGroupTest, ImpossibleRequestsAreRefused) {
  const Layer layer{.rows = 16, .cols = 96, .tokens = 10};
  auto spec = small_spec();
  spec.group_size = 64;
  EXPECT_THAT(error_of([&] { quantize(layer, spec); }).message(),
              AllOf(HasSubstr("fc1"), HasSubstr("96 columns"), HasSubstr("32, 16, 8, -1")));
  spec = small_spec();
  EXPECT_EQ(error_of([&] { quantize(layer, std::nullopt, spec); }).kind(), ErrorKind::usage);
  spec.method = Method::rtn;
  spec.clip = Clip::hessian;
  EXPECT_THAT(error_of([&] { quantize(layer, std::nullopt, spec); }).message(), HasSubstr("--calibration"));

  const Layer narrow{.rows = 4, .cols = 40, .tokens = 10};
  spec = small_spec();
  spec.group_size = 8;
  spec.bits = 3;
  const auto error = error_of([&] { quantize(narrow, spec); });
  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("fc1"), HasSubstr("40 columns of 3 bits")));

  const Layer wide{.rows = 1, .cols = 1056, .tokens = 1};
  spec = small_spec();
  spec.method = Method::obq;
  EXPECT_THAT(error_of([&] { quantize(wide, spec); }).message(), AllOf(HasSubstr("1024"), HasSubstr("1056")));
}

TEST_F(QuantizeGroupTest, LeavesOfOtherRanksAreRefused) {
  const Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  const test::DeviceMatrix<float> x(local.team(), 150, 64, layer.x);
  HessianInput input{.leaves = cut(x.view(), 4, 50), .tokens = 150, .matrix = {}, .find_non_finite = {}};
  input.leaves.pop_back();
  EXPECT_THAT(error_of([&] { quantize(layer, input, small_spec()); }).message(), HasSubstr("3 leaves"));
  input.leaves.push_back({.leaf = 2, .chunks = {}});
  EXPECT_THAT(error_of([&] { quantize(layer, input, small_spec()); }).message(), HasSubstr("leaf 2, expected leaf 3"));
}

TEST_F(QuantizeGroupTest, SaturatedCodesOfRoundToNearestAreThoseBeyondTheGrid) {
  Layer layer{.rows = 1, .cols = 32, .tokens = 1};
  std::fill(layer.weight.begin(), layer.weight.end(), 0.01f);
  layer.weight[0] = 1.5f;  // s = 0.2: 1.5/0.2 rounds to 8, beyond 7
  layer.weight[1] = -1.5f;
  auto spec = small_spec();
  spec.method = Method::rtn;
  spec.clip = Clip::none;

  const auto record = quantize(layer, std::nullopt, spec).layer_record;

  EXPECT_LE(record.saturated_codes, 1);
  EXPECT_NEAR(record.min_scale, 0.2, 1e-3);
  EXPECT_EQ(record.min_scale, record.max_scale);
}

TEST_F(QuantizeGroupTest, NothingIsLeftOnTheDevice) {
  const Layer layer{.rows = 16, .cols = 64, .tokens = 150};
  quantize(layer, small_spec());
  local.stream().synchronize();
  EXPECT_EQ(local.backend().bytes_in_use(), 0);
}

TEST(ResidentWay, OneRankCopiesChunksWhereSumsOfAllPanelsAndAChunkFit) {
  const PanelLayout layout(1000, 256);
  const std::int64_t chunk = 1 << 20;
  const auto copying = resident_way(layout, 1, 0, 8, chunk, std::int64_t{1} << 30);

  EXPECT_TRUE(copying.copies);
  // log2(8) + 1 = 4 buffers of each panel.
  EXPECT_EQ(copying.bytes, chunk + 4 * 4 * (1000 * 232 + (768 + 512 + 256) * 256));
  EXPECT_TRUE(resident_way(layout, 1, 0, 8, chunk, copying.bytes).copies);
  const auto in_place = resident_way(layout, 1, 0, 8, chunk, copying.bytes - 1);
  EXPECT_FALSE(in_place.copies);
  EXPECT_EQ(in_place.bytes, 4 * 4 * 1000 * 232);
  EXPECT_FALSE(resident_way(layout, 2, 0, 8, chunk, std::int64_t{1} << 30).copies);
}

TEST(GroupMemory, OfAWholeHessianIsThatOfOneRank) {
  const QuantSpec spec;
  Partition partition{.leaves = 8, .panel_columns = 128, .row_tile = 16};
  const GroupShape one{.rows = 100, .columns = 640, .ranks = 1, .rank = 0};
  const GroupShape second{.rows = 100, .columns = 640, .ranks = 2, .rank = 1};
  const auto alone = group_memory(one, spec, partition, true);

  EXPECT_LT(group_memory(second, spec, partition, true).hessian, alone.hessian);
  partition.whole_columns = 640;
  const auto whole = group_memory(second, spec, partition, true);
  EXPECT_EQ(whole.hessian, alone.hessian);
  EXPECT_EQ(whole.factor, alone.factor);
  EXPECT_LT(whole.rows, alone.rows);
}

}  // namespace
}  // namespace gptqd::gptq
