#pragma once
/// @file Who owns what, in pieces of which size: computed before anything is read, the same on every rank.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/process_grid.hpp"
#include "comm/tree_sum.hpp"
#include "gptq/quant_spec.hpp"
#include "pipeline/memory_plan.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// Consecutive samples, or blocks.
struct IndexRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t end() const { return first + count; }
  bool operator==(const IndexRange&) const = default;
};

/// What a plan is made from besides the model.
struct PlanRequest {
  int ranks = 1;
  int stages = 1;
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t micro_batch_tokens = 4096;
  gptq::Partition partition;
  MemorySettings memory = {};
  std::optional<Activations> activations = std::nullopt;  ///< nothing: resident where they fit into what is available
  std::optional<MemoryBytes> available = std::nullopt;    ///< to each rank; nothing: enough
};

/// Pure and free of MPI. Nothing that decides bits (leaves, micro-batches, panels, tiles) depends on the ranks.
struct Plan {
  comm::GridShape grid;
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t micro_batch_samples = 1;
  std::int64_t blocks = 0;
  gptq::Partition partition;
  bool leaves_raised = false;  ///< more replicas than the leaves asked for
  MemorySettings memory;
  Activations activations = Activations::resident;
  std::int64_t spare_bytes = 0;  ///< of the device, for fewer passes over activations

  std::int64_t tokens() const { return samples * seqlen; }
  /// Samples of one leaf of the summation tree.
  IndexRange leaf_samples(int leaf) const;
  /// The leaves and samples of a replica: contiguous.
  comm::LeafRange replica_leaves(int replica) const;
  IndexRange replica_samples(int replica) const;
  /// Runs of samples that are computed together: they never straddle leaves. In order.
  std::vector<IndexRange> micro_batches(int leaf) const;
  IndexRange stage_blocks(int stage) const;
  int stage_of(std::int64_t block) const;
  /// Replica of the block's stage that reads it and writes its shard.
  int owner_of(std::int64_t block) const;
  /// The most memory one rank needs.
  RankMemory bytes_per_rank(const ModelSpec& model) const { return rank_memory(model, *this, memory, activations); }
  /// One line for the log.
  std::string summary(const ModelSpec& model) const;
};

/// @throws Error (usage) when stages do not divide the ranks or exceed the blocks
Plan make_plan(const ModelSpec& model, const PlanRequest& request);

}  // namespace gptqd::pipeline
