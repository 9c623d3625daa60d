#include "pipeline/plan.hpp"

#include <algorithm>
#include <bit>

namespace gptqd::pipeline {

namespace {

/// Part `index` of `parts` equal contiguous parts of `total` things.
IndexRange part_of(std::int64_t total, std::int64_t parts, std::int64_t index) {
  const std::int64_t first = total * index / parts;
  return {.first = first, .count = total * (index + 1) / parts - first};
}

}  // namespace

IndexRange Plan::leaf_samples(int leaf) const { return part_of(samples, partition.leaves, leaf); }

comm::LeafRange Plan::replica_leaves(int replica) const {
  return comm::leaves_of(replica, grid.replicas, partition.leaves);
}

IndexRange Plan::replica_samples(int replica) const {
  const auto leaves = replica_leaves(replica);
  if (leaves.count == 0) {
    return {};
  }
  const auto first = leaf_samples(leaves.first).first;
  return {.first = first, .count = leaf_samples(leaves.end() - 1).end() - first};
}

std::vector<IndexRange> Plan::micro_batches(int leaf) const {
  std::vector<IndexRange> batches;
  const auto range = leaf_samples(leaf);
  for (std::int64_t first = range.first; first < range.end(); first += micro_batch_samples) {
    batches.push_back({.first = first, .count = std::min(micro_batch_samples, range.end() - first)});
  }
  return batches;
}

IndexRange Plan::stage_blocks(int stage) const { return part_of(blocks, grid.stages, stage); }

int Plan::stage_of(std::int64_t block) const {
  int stage = 0;
  while (block >= stage_blocks(stage).end()) {
    ++stage;
  }
  return stage;
}

int Plan::owner_of(std::int64_t block) const {
  return static_cast<int>((block - stage_blocks(stage_of(block)).first) % grid.replicas);
}

std::int64_t Plan::bytes_per_rank(const ModelSpec& model) const {
  std::int64_t most_rows = 0;
  for (int replica = 0; replica < grid.replicas; ++replica) {
    most_rows = std::max(most_rows, replica_samples(replica).count * seqlen);
  }
  const auto& block = model.blocks.front();
  std::int64_t widest = 0;
  std::int64_t block_weights = 0;
  for (const auto& linear : block.linears()) {
    widest = std::max(widest, linear.cols);
    block_weights += linear.rows * linear.cols;
  }
  const std::int64_t activations = most_rows * (2 * model.hidden + widest);
  const std::int64_t panels = widest * (widest + partition.panel_columns) / 2 * 2 / grid.replicas;
  // The block's weights twice: as they are, and the next block's, in the checkpoint's type and on their way.
  return static_cast<std::int64_t>(sizeof(float)) * (activations + panels + 2 * block_weights);
}

std::string Plan::summary(const ModelSpec& model) const {
  const std::string calibration =
      samples > 0 ? fmt::format("{} samples of {} tokens in {} leaves", samples, seqlen, partition.leaves)
                  : std::string("no calibration");
  return fmt::format(
      "{} blocks, {:.1f} M weights; {} rank{} = {} stage{} x {} replica{}; {}; panels of {} columns, tiles of {} rows; "
      "about {:.2f} GB a rank",
      blocks, static_cast<double>(model.parameters()) / 1e6, grid.stages * grid.replicas,
      grid.stages * grid.replicas == 1 ? "" : "s", grid.stages, grid.stages == 1 ? "" : "s", grid.replicas,
      grid.replicas == 1 ? "" : "s", calibration, partition.panel_columns, partition.row_tile,
      static_cast<double>(bytes_per_rank(model)) / 1e9);
}

Plan make_plan(const ModelSpec& model, const PlanRequest& request) {
  Plan plan;
  plan.grid = comm::grid_shape(request.ranks, request.stages);
  plan.samples = request.samples;
  plan.seqlen = request.seqlen;
  plan.blocks = static_cast<std::int64_t>(model.blocks.size());
  plan.partition = request.partition;
  if (plan.grid.stages > plan.blocks) {
    throw Error(ErrorKind::usage,
                fmt::format("--stages {}: the model has only {} blocks; give at most that many stages",
                            plan.grid.stages, plan.blocks));
  }
  if (plan.grid.replicas > plan.partition.leaves) {
    plan.partition.leaves = static_cast<int>(std::bit_ceil(static_cast<unsigned>(plan.grid.replicas)));
    plan.leaves_raised = true;
  }
  plan.micro_batch_samples =
      std::max<std::int64_t>(1, request.micro_batch_tokens / std::max<std::int64_t>(1, request.seqlen));
  return plan;
}

}  // namespace gptqd::pipeline
