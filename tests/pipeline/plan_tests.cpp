#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "pipeline/plan.hpp"
#include "tests/pipeline/error_of.hpp"

namespace gptqd::pipeline {
namespace {

using test::error_of;
using ::testing::HasSubstr;

ModelSpec model_of_blocks(int count) {
  ModelSpec model;
  model.hidden = 64;
  for (int i = 0; i < count; ++i) {
    BlockSpec block;
    block.attention_in.assign(3, {.module = "qkv", .rows = 64, .cols = 64});
    block.attention_out = {.module = "out", .rows = 64, .cols = 64};
    block.mlp_in = {{.module = "fc1", .rows = 256, .cols = 64}};
    block.mlp_out = {.module = "fc2", .rows = 64, .cols = 256};
    model.blocks.push_back(block);
  }
  return model;
}

Plan plan_of(int ranks, int stages, std::int64_t samples, int leaves, int blocks = 6,
             std::int64_t micro_batch_tokens = 4096) {
  return make_plan(model_of_blocks(blocks), {.ranks = ranks,
                                             .stages = stages,
                                             .samples = samples,
                                             .seqlen = 512,
                                             .micro_batch_tokens = micro_batch_tokens,
                                             .partition = {.leaves = leaves}});
}

struct Case {
  int ranks;
  int stages;
  std::int64_t samples;
  int leaves;
};

/// Powers of two and not, more ranks than leaves, fewer samples than leaves, no samples.
std::vector<Case> many_cases() {
  std::vector<Case> cases;
  for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 12}) {
    for (const int stages : {1, 2, 3, 4, 6}) {
      for (const std::int64_t samples : {0, 1, 3, 8, 16, 17, 127, 128, 1000}) {
        for (const int leaves : {1, 2, 8, 16}) {
          if (ranks % stages == 0) {
            cases.push_back({ranks, stages, samples, leaves});
          }
        }
      }
    }
  }
  return cases;
}

std::string text_of(const Case& c) {
  return fmt::format("{} ranks, {} stages, {} samples, {} leaves", c.ranks, c.stages, c.samples, c.leaves);
}

TEST(Plan, EverySampleLiesInOneLeafAndOneMicroBatchOfIt) {
  for (const auto& c : many_cases()) {
    const Plan plan = plan_of(c.ranks, c.stages, c.samples, c.leaves);
    std::int64_t next = 0;
    for (int leaf = 0; leaf < plan.partition.leaves; ++leaf) {
      const auto samples = plan.leaf_samples(leaf);
      ASSERT_EQ(samples.first, next) << text_of(c);
      for (const auto& batch : plan.micro_batches(leaf)) {
        ASSERT_EQ(batch.first, next) << text_of(c);
        ASSERT_GT(batch.count, 0) << text_of(c);
        ASSERT_LE(batch.count, plan.micro_batch_samples) << text_of(c);
        next = batch.end();
      }
      ASSERT_EQ(samples.end(), next) << text_of(c);
    }
    ASSERT_EQ(next, c.samples) << text_of(c);
  }
}

TEST(Plan, ReplicasShareTheLeavesInOrderAndTheirSamplesFollow) {
  for (const auto& c : many_cases()) {
    const Plan plan = plan_of(c.ranks, c.stages, c.samples, c.leaves);
    int next_leaf = 0;
    std::int64_t next_sample = 0;
    for (int replica = 0; replica < plan.grid.replicas; ++replica) {
      const auto leaves = plan.replica_leaves(replica);
      const auto samples = plan.replica_samples(replica);
      ASSERT_EQ(leaves.first, next_leaf) << text_of(c);
      ASSERT_GE(leaves.count, 1) << text_of(c);
      ASSERT_EQ(samples.first, next_sample) << text_of(c);
      next_leaf = leaves.end();
      next_sample = samples.end();
    }
    ASSERT_EQ(next_leaf, plan.partition.leaves) << text_of(c);
    ASSERT_EQ(next_sample, c.samples) << text_of(c);
  }
}

TEST(Plan, LeavesAndMicroBatchesAreTheSameAtEveryNumberOfRanksUpToTheLeaves) {
  for (const std::int64_t samples : {1, 5, 16, 33, 128}) {
    const Plan alone = plan_of(1, 1, samples, 8);
    for (const int ranks : {2, 3, 4, 6, 8}) {
      for (const int stages : {1, 2, 3}) {
        if (ranks % stages != 0) {
          continue;
        }
        const Plan plan = plan_of(ranks, stages, samples, 8);
        ASSERT_EQ(plan.partition.leaves, 8);
        ASSERT_FALSE(plan.leaves_raised);
        ASSERT_EQ(plan.micro_batch_samples, alone.micro_batch_samples);
        for (int leaf = 0; leaf < 8; ++leaf) {
          ASSERT_EQ(plan.micro_batches(leaf), alone.micro_batches(leaf)) << ranks << " ranks, leaf " << leaf;
        }
      }
    }
  }
}

TEST(Plan, MoreReplicasThanLeavesRaiseTheLeavesToThePowerOfTwoAbove) {
  EXPECT_EQ(plan_of(9, 1, 128, 8).partition.leaves, 16);
  EXPECT_EQ(plan_of(16, 1, 128, 8).partition.leaves, 16);
  EXPECT_EQ(plan_of(3, 1, 128, 2).partition.leaves, 4);
  EXPECT_TRUE(plan_of(3, 1, 128, 2).leaves_raised);
  // Replicas count, not ranks.
  EXPECT_EQ(plan_of(16, 2, 128, 8).partition.leaves, 8);
  EXPECT_FALSE(plan_of(16, 2, 128, 8).leaves_raised);
}

TEST(Plan, StagesHoldAllBlocksInOrderAndNoneIsEmpty) {
  for (const int blocks : {1, 2, 5, 6, 7, 70}) {
    for (int stages = 1; stages <= std::min(blocks, 8); ++stages) {
      const Plan plan = plan_of(stages, stages, 16, 8, blocks);
      std::int64_t next = 0;
      for (int stage = 0; stage < stages; ++stage) {
        const auto range = plan.stage_blocks(stage);
        ASSERT_EQ(range.first, next);
        ASSERT_GE(range.count, 1);
        for (std::int64_t block = range.first; block < range.end(); ++block) {
          ASSERT_EQ(plan.stage_of(block), stage);
        }
        next = range.end();
      }
      ASSERT_EQ(next, blocks);
    }
  }
}

TEST(Plan, OwnersOfAStageTakeTurns) {
  const Plan plan = plan_of(6, 2, 16, 8, 7);  // blocks 0..2 and 3..6, three replicas each

  std::vector<int> owners;
  for (std::int64_t block = 0; block < 7; ++block) {
    owners.push_back(plan.owner_of(block));
  }

  EXPECT_THAT(owners, ::testing::ElementsAre(0, 1, 2, 0, 1, 2, 0));
}

TEST(Plan, AMicroBatchHoldsWholeSamplesAndAtLeastOne) {
  EXPECT_EQ(plan_of(1, 1, 16, 8, 6, 4096).micro_batch_samples, 8);
  EXPECT_EQ(plan_of(1, 1, 16, 8, 6, 4095).micro_batch_samples, 7);
  EXPECT_EQ(plan_of(1, 1, 16, 8, 6, 100).micro_batch_samples, 1);
}

TEST(Plan, StagesThatDoNotDivideTheRanksAreRefusedWithBothNumbers) {
  const Error error = error_of([] { plan_of(4, 3, 16, 8); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), ::testing::AllOf(HasSubstr("4"), HasSubstr("3"), HasSubstr("stages")));
}

TEST(Plan, MoreStagesThanBlocksAreRefused) {
  const Error error = error_of([] { plan_of(4, 4, 16, 8, 3); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), ::testing::AllOf(HasSubstr("--stages 4"), HasSubstr("3 blocks")));
}

TEST(Plan, MoreReplicasNeedLessMemoryEach) {
  const auto model = model_of_blocks(6);
  std::int64_t before = std::numeric_limits<std::int64_t>::max();
  for (const int ranks : {1, 2, 4, 8}) {
    const auto bytes = plan_of(ranks, 1, 128, 8).bytes_per_rank(model).most.device;
    EXPECT_GT(bytes, 0);
    EXPECT_LT(bytes, before);
    before = bytes;
  }
}

/// A model and tokens whose activations take far more than everything else.
PlanRequest many_tokens(std::int64_t device_bytes) {
  return {.samples = 1024,
          .seqlen = 512,
          .partition = {.leaves = 8},
          .available = MemoryBytes{.device = device_bytes, .host = std::numeric_limits<std::int64_t>::max()}};
}

TEST(Plan, ActivationsAreParkedWhereTheyDoNotFitOnTheDevice) {
  const auto model = model_of_blocks(6);
  const Plan roomy = make_plan(model, many_tokens(std::int64_t{1} << 40));
  const auto resident = roomy.bytes_per_rank(model).most;

  const Plan tight = make_plan(model, many_tokens(resident.device));
  const auto parked = tight.bytes_per_rank(model).most;

  EXPECT_EQ(roomy.activations, Activations::resident);
  EXPECT_EQ(resident.host, 0);
  EXPECT_EQ(tight.activations, Activations::parked);
  EXPECT_EQ(parked.host, 1024 * 512 * 256 * 2);
  EXPECT_LT(parked.device, resident.device - parked.host);
  EXPECT_THAT(roomy.summary(model), HasSubstr("activations resident"));
  EXPECT_THAT(tight.summary(model), ::testing::AllOf(HasSubstr("activations parked"), HasSubstr("of host memory")));
}

TEST(Plan, WhereActivationsLiveIsTheUsersChoice) {
  const auto model = model_of_blocks(6);
  for (const auto asked : {Activations::resident, Activations::parked}) {
    for (const std::int64_t device_bytes : {std::int64_t{1}, std::int64_t{1} << 40}) {
      auto request = many_tokens(device_bytes);
      request.activations = asked;
      EXPECT_EQ(make_plan(model, request).activations, asked);
    }
  }
}

TEST(Plan, FewTokensAreNotParkedForThatWouldTakeMore) {
  auto request = many_tokens(1);
  request.samples = 1;

  EXPECT_EQ(make_plan(model_of_blocks(6), request).activations, Activations::resident);
}

TEST(Plan, OnACpuParkedActivationsTakeTheSameMemory) {
  const auto model = model_of_blocks(6);
  auto request = many_tokens(1);
  request.activations = Activations::parked;
  const auto apart = make_plan(model, request).bytes_per_rank(model).most;
  request.memory.kind = MemoryKind::host;

  const auto together = make_plan(model, request).bytes_per_rank(model).most;

  EXPECT_EQ(together.host, 0);
  EXPECT_EQ(together.device, apart.device + apart.host);
}

TEST(Plan, OneGpuOf80GigabytesTakesBloom176bWithActivationsParked) {
  ModelSpec model;
  model.hidden = 14336;
  model.embedding_width = model.hidden;
  model.vocabulary = 250880;
  BlockSpec block;
  block.attention_in = {{.module = "qkv", .rows = 3 * 14336, .cols = 14336}};
  block.attention_out = {.module = "out", .rows = 14336, .cols = 14336};
  block.mlp_in = {{.module = "fc1", .rows = 57344, .cols = 14336}};
  block.mlp_out = {.module = "fc2", .rows = 14336, .cols = 57344};
  model.blocks.assign(70, block);

  const Plan plan = make_plan(
      model, {.samples = 128,
              .seqlen = 2048,
              .partition = {.leaves = 8, .panel_columns = gpu_pieces.panel_columns, .row_tile = gpu_pieces.row_tile},
              .memory = {.gram_tokens = gpu_pieces.gram_tokens},
              .available = MemoryBytes{.device = 80'000'000'000, .host = 128'000'000'000}});

  EXPECT_EQ(plan.activations, Activations::parked);
  const auto needs = plan.bytes_per_rank(model).most;
  EXPECT_GT(plan.spare_bytes, 5'000'000'000);
  EXPECT_LT(needs.device, 64'000'000'000);
  EXPECT_NEAR(static_cast<double>(needs.host), 30.06e9, 0.01e9);
}

TEST(Plan, TheWordsForActivationsAreThree) {
  EXPECT_EQ(activations_from_name("auto"), std::nullopt);
  EXPECT_EQ(activations_from_name("resident"), Activations::resident);
  EXPECT_EQ(activations_from_name("parked"), Activations::parked);
  const Error error = error_of([] { activations_from_name("disk"); });
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), ::testing::AllOf(HasSubstr("disk"), HasSubstr("parked")));
}

TEST(Plan, TheSummaryTellsWhatWasDecided) {
  const Plan plan = plan_of(4, 2, 128, 8);

  EXPECT_THAT(plan.summary(model_of_blocks(6)),
              ::testing::AllOf(HasSubstr("6 blocks"), HasSubstr("4 ranks = 2 stages x 2 replicas"),
                               HasSubstr("128 samples of 512 tokens"), HasSubstr("8 leaves")));
}

}  // namespace
}  // namespace gptqd::pipeline
