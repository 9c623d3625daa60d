#include "pipeline/memory_plan.hpp"

#include <algorithm>
#include <utility>

#include "gptq/group_memory.hpp"
#include "gptq/hessian.hpp"
#include "pipeline/plan.hpp"

namespace gptqd::pipeline {

namespace {

/// Rows of the largest micro-batch and of the largest chunk of XᵀX of a replica (BlockQuantizer::hessian_input).
struct LargestPieces {
  std::int64_t batch = 0;
  std::int64_t chunk = 0;
};
LargestPieces largest_pieces(const Plan& plan, int replica, std::int64_t gram_tokens) {
  LargestPieces largest;
  const auto leaves = plan.replica_leaves(replica);
  for (int leaf = leaves.first; leaf < leaves.end(); ++leaf) {
    std::int64_t chunk = 0;
    for (const auto& run : plan.micro_batches(leaf)) {
      const std::int64_t rows = run.count * plan.seqlen;
      chunk = chunk > 0 && chunk + rows <= gram_tokens ? chunk + rows : rows;
      largest = {.batch = std::max(largest.batch, rows), .chunk = std::max(largest.chunk, chunk)};
    }
  }
  return largest;
}

struct BlockBytes {
  std::int64_t weights = 0;  ///< as computed with
  std::int64_t stored = 0;   ///< as in the checkpoint
};
BlockBytes block_bytes(const ModelSpec& model, const BlockSpec& block, const MemorySettings& settings) {
  constexpr std::int64_t vector_bytes = size_of(DType::f32);
  BlockBytes bytes;
  const auto add = [&](std::int64_t count, std::int64_t element) {
    bytes.weights += count * element;
    bytes.stored += count * size_of(model.dtype);
  };
  for (const auto& linear : block.linears()) {
    add(linear.rows * linear.cols, size_of(settings.compute));
    add(linear.bias ? linear.rows : 0, vector_bytes);
  }
  for (const auto& norm : block.norms()) {
    add(norm.width * (norm.has_bias() ? 2 : 1), vector_bytes);
  }
  return bytes;
}

/// What one rank holds while a block's group is quantized, beside what it always holds.
struct GroupBytes {
  std::int64_t most = 0;
  std::int64_t square = 0;
  std::int64_t results = 0;
};
GroupBytes group_bytes(const BlockSpec& block, Phase phase, const Plan& plan, int replica,
                       const MemorySettings& settings, Activations activations, std::int64_t chunk_rows) {
  const std::int64_t n = block.input_width(phase);
  const int ranks = plan.grid.replicas;
  const bool calibrated = plan.samples > 0;
  const auto layout = gptq::panel_layout(n, settings.spec, plan.partition);
  const auto shape_of = [&](int rank) {
    return gptq::GroupShape{.rows = block.output_width(phase), .columns = n, .ranks = ranks, .rank = rank};
  };
  const auto memory = gptq::group_memory(shape_of(replica), settings.spec, plan.partition, calibrated);
  std::int64_t hessian = 0;
  if (calibrated && activations == Activations::resident) {
    const std::int64_t chunk = chunk_rows * n * size_of(settings.compute);
    hessian = memory.hessian + gptq::resident_way(layout, ranks, replica, plan.partition.leaves, chunk,
                                                  memory.room() + plan.spare_bytes)
                                   .bytes;
  } else if (calibrated) {
    const std::int64_t ring = 2 * chunk_rows * n * size_of(settings.compute);
    std::int64_t room = memory.room();
    for (int rank = 0; rank < ranks; ++rank) {
      room = std::min(room, gptq::group_memory(shape_of(rank), settings.spec, plan.partition, true).room());
    }
    std::int64_t sums = 0;
    for (const auto& pass : gptq::panel_passes(layout, ranks, plan.partition.leaves, room + plan.spare_bytes - ring)) {
      sums = std::max(sums, pass.bytes);
    }
    hessian = memory.hessian + ring + sums;
  }
  constexpr std::int64_t maps = 6;  // DeviceOrder
  const std::int64_t sums_of_squares = plan.replica_leaves(replica).count * n * size_of(DType::f64);
  return {.most = std::max(hessian, memory.solve()) + maps * n * size_of(DType::i32) + sums_of_squares,
          .square = memory.hessian + memory.factor,
          .results = memory.results};
}

}  // namespace

std::string_view name_of(Activations activations) {
  return activations == Activations::resident ? "resident" : "parked";
}

std::optional<Activations> activations_from_name(std::string_view name) {
  if (name == "auto") {
    return std::nullopt;
  }
  for (const auto activations : {Activations::resident, Activations::parked}) {
    if (name == name_of(activations)) {
      return activations;
    }
  }
  throw Error(ErrorKind::usage, fmt::format("--activations {}: expected auto, resident or parked", name));
}

bool is_wide(Phase phase) { return phase == Phase::attention_out || phase == Phase::mlp_out; }

PhaseWidths phase_widths(const ModelSpec& model) {
  PhaseWidths widths;
  for (const auto& block : model.blocks) {
    for (const Phase phase : phases) {
      auto& widest = is_wide(phase) ? widths.wide : widths.narrow;
      widest = std::max(widest, block.input_width(phase));
    }
  }
  return widths;
}

RankMemory rank_memory(const ModelSpec& model, const Plan& plan, const MemorySettings& settings,
                       Activations activations) {
  const auto& block = model.blocks.front();
  const auto widths = phase_widths(model);
  const auto weights = block_bytes(model, block, settings);
  const std::int64_t element = size_of(settings.compute);
  const std::int64_t projected =
      std::max(block.output_width(Phase::attention_in), block.gated ? block.output_width(Phase::mlp_in) : 0);
  const std::int64_t tables = model.vocabulary * model.embedding_width * size_of(model.dtype) +
                              (model.positions ? model.positions->rows * model.hidden * element : 0);
  const std::int64_t replicas = plan.grid.replicas;
  RankMemory result;
  for (int replica = 0; replica < replicas; ++replica) {
    const auto pieces = largest_pieces(plan, replica, settings.gram_tokens);
    const std::int64_t rows = plan.replica_samples(replica).count * plan.seqlen;
    const std::int64_t hidden = rows * model.hidden * element;
    const std::int64_t inputs = rows * element;
    MemoryBytes needs{.device = hidden + pieces.batch * projected * element};
    if (activations == Activations::resident) {
      needs.device += inputs * (widths.narrow + widths.wide);
    } else {
      needs.host = inputs * widths.widest();
    }
    // Beside a block's weights: what this rank has read ahead, and with several ranks what comes from another.
    const std::int64_t read_ahead = std::min<std::int64_t>(plan.blocks - 1, replicas > 1 ? 2 : 1) * weights.stored;
    const std::int64_t loading = std::max(weights.stored, read_ahead);
    std::int64_t most = std::max(loading, plan.samples > 0 ? weights.stored + tables : 0);
    std::int64_t results = 0;
    std::int64_t before = 0;
    for (const Phase phase : phases) {
      const auto group = group_bytes(block, phase, plan, replica, settings, activations, pieces.chunk);
      const std::int64_t width = block.input_width(phase);
      const std::int64_t ring =
          activations == Activations::parked ? 2 * pieces.batch * (before + width) * element : std::int64_t{0};
      // While groups are quantized the next block's weights are read ahead, but none is on its way between ranks.
      const std::int64_t ahead = std::min<std::int64_t>(plan.blocks - 1, 1) * weights.stored;
      const std::int64_t kept = settings.keeps_hidden_before_block ? hidden : 0;
      most = std::max(most, weights.weights + ahead + results + kept + std::max(group.most, ring));
      result.square = std::max(result.square, group.square);
      results += group.results;
      before = width;
    }
    most = std::max(most, weights.weights + read_ahead + results);
    needs.device += most;
    if (settings.kind == MemoryKind::host) {
      needs.device += std::exchange(needs.host, 0);
    }
    result.most = {.device = std::max(result.most.device, needs.device),
                   .host = std::max(result.most.host, needs.host)};
  }
  return result;
}

std::int64_t device_bytes_left(const MemoryBytes& needs, const MemoryBytes& available) {
  constexpr std::int64_t allowance = std::int64_t{256} << 20;
  return available.device - needs.device - needs.device / 8 - allowance;
}

}  // namespace gptqd::pipeline
