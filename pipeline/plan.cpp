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

std::string Plan::summary(const ModelSpec& model) const {
  const std::string calibration =
      samples > 0 ? fmt::format("{} samples of {} tokens in {} leaves", samples, seqlen, partition.leaves)
                  : std::string("no calibration");
  const auto needs = bytes_per_rank(model).most;
  std::string memory_text = fmt::format("about {:.2f} GB a rank", static_cast<double>(needs.device) / 1e9);
  if (needs.host > 0) {
    memory_text += fmt::format(" and {:.2f} GB of host memory", static_cast<double>(needs.host) / 1e9);
  }
  if (samples > 0) {
    memory_text += fmt::format(", activations {}", name_of(activations));
  }
  return fmt::format(
      "{} blocks, {:.1f} M weights; {} rank{} = {} stage{} x {} replica{}; {}; panels of {} columns, tiles of {} rows; "
      "{}",
      blocks, static_cast<double>(model.parameters()) / 1e6, grid.stages * grid.replicas,
      grid.stages * grid.replicas == 1 ? "" : "s", grid.stages, grid.stages == 1 ? "" : "s", grid.replicas,
      grid.replicas == 1 ? "" : "s", calibration, partition.panel_columns, partition.row_tile, memory_text);
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
  plan.memory = request.memory;
  if (request.activations) {
    plan.activations = *request.activations;
  } else if (request.available) {
    const auto resident = rank_memory(model, plan, plan.memory, Activations::resident).most;
    const auto parked = rank_memory(model, plan, plan.memory, Activations::parked).most;
    // Few tokens take no less when they are parked.
    if (device_bytes_left(resident, *request.available) < 0 && parked.device < resident.device) {
      plan.activations = Activations::parked;
    }
  }
  if (plan.memory.kind == MemoryKind::cuda && request.available) {
    // Half, for the account is an estimate. Copies of resident activations gain little where they take much.
    constexpr std::int64_t most_for_copies = std::int64_t{4} << 30;
    const std::int64_t left =
        std::max<std::int64_t>(0, device_bytes_left(plan.bytes_per_rank(model).most, *request.available) / 2);
    plan.spare_bytes = plan.activations == Activations::parked ? left : std::min(left, most_for_copies);
  }
  return plan;
}

}  // namespace gptqd::pipeline
