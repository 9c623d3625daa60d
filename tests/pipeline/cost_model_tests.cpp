#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "pipeline/cost_model.hpp"
#include "pipeline/source.hpp"
#include "tests/pipeline/error_of.hpp"

namespace gptqd::pipeline {
namespace {

using test::error_of;
using ::testing::DoubleNear;
using ::testing::HasSubstr;

ModelSpec model_named(const std::string& name) { return open_source("synthetic:" + name).model; }

Plan plan_for(const ModelSpec& model, int ranks, std::int64_t whole_columns = gpu_pieces.whole_columns) {
  return make_plan(model, {.ranks = ranks,
                           .samples = 128,
                           .seqlen = 2048,
                           .partition = {.leaves = 8,
                                         .panel_columns = gpu_pieces.panel_columns,
                                         .row_tile = gpu_pieces.row_tile,
                                         .whole_columns = whole_columns}});
}

BlockCost cost_of(const std::string& name, int ranks, const MachineRates& rates = {}) {
  const auto model = model_named(name);
  return block_cost(model.blocks.front(), plan_for(model, ranks), rates, 4);
}

TEST(BlockCost, IsWhatH200sWereMeasuredToTakeWithinATenth) {
  // docs/results.md, "On a GPU" and "On several GPUs".
  const std::vector<std::tuple<std::string, int, double>> measured{
      {"llama-3-8b", 1, 0.385}, {"llama-3-8b", 2, 0.217}, {"llama-3-8b", 4, 0.127},
      {"opt-66b", 1, 2.060},    {"opt-66b", 2, 1.087},    {"opt-66b", 4, 0.616},
      {"bloom-176b", 1, 5.219}, {"bloom-176b", 2, 2.754}, {"bloom-176b", 4, 1.480}};
  for (const auto& [name, ranks, seconds] : measured) {
    EXPECT_THAT(cost_of(name, ranks).total(), DoubleNear(seconds, seconds / 10)) << name << " on " << ranks;
  }
}

TEST(BlockCost, AnHThatIsWholeOnEveryRankIsFactoredAsFastAsOnOne) {
  const auto model = model_named("opt-66b");
  const auto cost = [&](int ranks) { return block_cost(model.blocks.front(), plan_for(model, ranks, 36864), {}, 4); };

  EXPECT_EQ(cost(2).factor, cost(1).factor);
  EXPECT_LT(cost_of("opt-66b", 2).factor, cost(2).factor);  // the widest one is spread there
}

TEST(BlockCost, OneRankExchangesNothing) { EXPECT_EQ(cost_of("opt-66b", 1).exchange, 0); }

TEST(BlockCost, MoreRanksTakeLessButNotProportionallyLess) {
  for (const std::string name : {"llama-3-8b", "opt-66b", "bloom-176b"}) {
    double before = cost_of(name, 1).total();
    for (const int ranks : {2, 4, 8}) {
      const double now = cost_of(name, ranks).total();
      EXPECT_LT(now, before) << name << " on " << ranks;
      EXPECT_GT(now, before / 2) << name << " on " << ranks;
      before = now;
    }
  }
}

TEST(BlockCost, WithoutLatencyAndWithFastLinksProductsScaleAsTheTokensDo) {
  const auto one = cost_of("opt-66b", 1, {.phase_seconds = 0, .link_bytes = 1e18});
  const auto two = cost_of("opt-66b", 2, {.phase_seconds = 0, .link_bytes = 1e18});

  EXPECT_THAT(two.hessian, DoubleNear(one.hessian / 2, 1e-9));
  EXPECT_THAT(two.exchange, DoubleNear(0, 1e-6));
  EXPECT_GT(two.factor, one.factor / 2);  // the panels follow one another
  EXPECT_LT(two.factor, one.factor * 0.7);
}

TEST(BlockCost, SlowLinksShow) {
  EXPECT_GT(cost_of("bloom-176b", 2, {.link_bytes = 1e9}).total(), 2 * cost_of("bloom-176b", 2).total());
  EXPECT_GT(cost_of("bloom-176b", 2, {.gpus_per_node = 1}).total(), cost_of("bloom-176b", 2).total());
}

TEST(RankMemory, WhatIsOfTheSquareOfColumnsHalvesOnTwoRanks) {
  const auto model = model_named("bloom-176b");
  const auto one = plan_for(model, 1).bytes_per_rank(model);
  const auto two = plan_for(model, 2).bytes_per_rank(model);

  // Two panels on their way beside half of them.
  EXPECT_THAT(static_cast<double>(two.square) / static_cast<double>(one.square), DoubleNear(0.59, 0.03));
  EXPECT_LT(two.most.device, one.most.device);
}

nlohmann::json block_of(double seconds) {
  return {
      {"block", 0},   {"forward", seconds},   {"hessian", 0.2},  {"factor", 0.1},        {"grids", 0.1},
      {"solve", 0.1}, {"finish", 0.1},        {"wall", seconds}, {"idle", 0.01},         {"exposed_transfers", 0.02},
      {"load", 0.0},  {"transfers", seconds}, {"write", 0.0},    {"transfer_bytes", 100}};
}

nlohmann::json report_with(nlohmann::json rank_seconds) {
  return {{"model", "synthetic:llama-3-8b"},
          {"ranks", 2},
          {"stages", 1},
          {"peak_bytes_per_rank", {5, 7}},
          {"rank_seconds", std::move(rank_seconds)},
          {"fingerprint",
           {{"calibration", {{"samples", 128}, {"seqlen", 2048}}},
            {"partition", {{"leaves", 8}, {"panel_columns", 2048}, {"row_tile", 512}}},
            {"micro_batch_samples", 2},
            {"spec", {{"bits", 4}}},
            {"environment", {{"backend", "cuda"}}}}}};
}

TEST(MeasuredRun, LeavesTheFirstBlockOutAndTakesTheSlowestRanksWall) {
  const auto run = measured_run(
      report_with({{block_of(9), block_of(1), block_of(3)}, {block_of(9), block_of(2), block_of(4)}}), "report.json");

  EXPECT_EQ(run.wall, 3);
  EXPECT_EQ(run.mean.forward, 2.5);
  EXPECT_EQ(run.peak_bytes, 7);
  ASSERT_EQ(run.by_rank.size(), 2u);
  EXPECT_EQ(run.by_rank[0].wall, 2);
  EXPECT_EQ(run.by_rank[1].transfer_bytes, 100);
  EXPECT_EQ(run.partition.row_tile, 512);
}

TEST(MeasuredRun, TakesTheFirstBlockWhereItIsTheOnlyOne) {
  EXPECT_EQ(measured_run(report_with({{block_of(9)}, {block_of(9)}}), "report.json").wall, 9);
}

TEST(MeasuredRun, RefusesRunsThatSayTooLittle) {
  EXPECT_THAT(error_of([] { measured_run(report_with({nlohmann::json::array()}), "a.json"); }).message(),
              HasSubstr("a.json: the run found all blocks finished"));
  auto without = report_with({{block_of(1)}});
  without.erase("rank_seconds");
  EXPECT_THAT(error_of([&] { measured_run(without, "a.json"); }).message(), HasSubstr("rank_seconds"));
  without = report_with({{nlohmann::json{{"block", 0}}}});
  EXPECT_THAT(error_of([&] { measured_run(without, "a.json"); }).message(), HasSubstr("a.json"));
}

TEST(Calibration, CorrectsEachStageByItsSumsOverRuns) {
  Calibration calibration;
  EXPECT_TRUE(calibration.empty());
  EXPECT_EQ(calibration.apply({.forward = 3}).forward, 3);

  calibration.add({.forward = 2, .solve = 1}, {.forward = 1, .solve = 1});
  calibration.add({.forward = 4, .solve = 3}, {.forward = 1, .solve = 1});

  const auto corrected = calibration.apply({.forward = 1, .factor = 5, .solve = 10, .exchange = 7});
  EXPECT_EQ(corrected.forward, 3);
  EXPECT_EQ(corrected.solve, 20);
  EXPECT_EQ(corrected.factor, 5);  // never measured
  EXPECT_EQ(corrected.exchange, 7);
}

}  // namespace
}  // namespace gptqd::pipeline
