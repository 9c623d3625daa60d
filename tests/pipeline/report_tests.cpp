#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pipeline/report.hpp"

namespace gptqd::pipeline {
namespace {

nlohmann::json record(const std::string& name, const nlohmann::json& loss, const nlohmann::json& rtn_loss,
                      bool fallback = false) {
  return {{"name", name}, {"loss", loss}, {"rtn_loss", rtn_loss}, {"fallback", fallback}};
}

io::BlockShard shard_of(std::int64_t block, const std::vector<nlohmann::json>& records) {
  io::BlockShard shard{.block = block, .fingerprint = {}, .spec = {}, .linears = {}, .run = {}};
  for (const auto& entry : records) {
    io::PackedLinear linear;
    linear.name = entry.at("name");
    linear.record = entry;
    shard.linears.push_back(std::move(linear));
  }
  return shard;
}

TEST(LayerTable, LossRatioIsTheGeometricMeanOverAllBlocks) {
  LayerTable table;
  table.add(shard_of(0, {record("a", 0.1, 0.2), record("b", 0.3, 0.3)}));  // 1/2, 1
  table.add(shard_of(1, {record("c", 0.1, 0.8)}));                         // 1/8

  ASSERT_TRUE(table.loss_ratio());
  EXPECT_NEAR(*table.loss_ratio(), std::cbrt(1.0 / 16), 1e-12);
}

TEST(LayerTable, LayersWithoutLossesOrWithLossesOfZeroDoNotCountInTheRatio) {
  LayerTable table;
  table.add(shard_of(0, {record("a", 0.1, 0.2), record("b", nullptr, 0.3), record("c", 0.0, 0.1), record("d", 0.1, 0.0),
                         record("e", nullptr, nullptr)}));

  EXPECT_NEAR(table.loss_ratio().value(), 0.5, 1e-12);
}

TEST(LayerTable, NoLossesNoRatio) {
  LayerTable table;
  EXPECT_FALSE(table.loss_ratio());

  table.add(shard_of(0, {record("a", nullptr, nullptr)}));

  EXPECT_FALSE(table.loss_ratio());
}

TEST(LayerTable, FallbacksAreCountedAndNamed) {
  LayerTable table;
  table.add(shard_of(0, {record("a", 1, 1), record("b", 1, 1, true)}));
  table.add(shard_of(3, {record("c", 1, 1, true)}));

  EXPECT_EQ(table.fallbacks(), 2);
  EXPECT_THAT(table.fallback_names(), ::testing::ElementsAre("b", "c"));
}

TEST(LayerTable, ALayerTellsItsBlockAndItsSecondsWhereTheyAreKnown) {
  auto shard = shard_of(5, {record("a", 1, 1), record("b", 1, 1)});
  shard.run = {{"linear_seconds", {{"a", 1.5}}}};
  LayerTable table;
  table.add(shard);
  table.add(shard_of(6, {record("c", 1, 1)}));

  EXPECT_EQ(table.layers().at(0).at("block"), 5);
  EXPECT_EQ(table.layers().at(0).at("seconds"), 1.5);
  EXPECT_FALSE(table.layers().at(1).contains("seconds"));
  EXPECT_EQ(table.layers().at(2).at("block"), 6);
  EXPECT_FALSE(table.layers().at(2).contains("seconds"));
}

TEST(ModelFlops, CountsForwardHessianFactorAndSolveOfEachGroup) {
  BlockSpec block;
  block.attention_in.assign(3, {.module = "qkv", .rows = 2, .cols = 3});
  block.attention_out = {.module = "out", .rows = 3, .cols = 2};
  block.mlp_in = {{.module = "fc1", .rows = 5, .cols = 3}};
  block.mlp_out = {.module = "fc2", .rows = 3, .cols = 5};
  constexpr double t = 7;

  const double forward = 2 * t * (3 * 2 * 3 + 3 * 2 + 5 * 3 + 3 * 5);
  const double hessian = t * (3 * 3 + 2 * 2 + 3 * 3 + 5 * 5);
  const double factor = (27 + 8 + 27 + 125) / 3.0;
  const double solve = 3 * 2 * 9 + 3 * 4 + 5 * 9 + 3 * 25;

  EXPECT_NEAR(model_flops(block, 7), forward + hessian + factor + solve, 1e-9);
}

}  // namespace
}  // namespace gptqd::pipeline
