#include "pipeline/cost_model.hpp"

#include <algorithm>
#include <numeric>

#include "gptq/panels.hpp"
#include "gptq/row_solver.hpp"
#include "io/json_file.hpp"

namespace gptqd::pipeline {

namespace {

double as_double(std::int64_t value) { return static_cast<double>(value); }

/// Tokens of the replica with most.
std::int64_t most_tokens(const Plan& plan) {
  std::int64_t most = 0;
  for (int replica = 0; replica < plan.grid.replicas; ++replica) {
    most = std::max(most, plan.replica_samples(replica).count);
  }
  return most * plan.seqlen;
}

std::int64_t most_rows(const Plan& plan, std::int64_t rows) {
  std::int64_t most = 0;
  for (int replica = 0; replica < plan.grid.replicas; ++replica) {
    most = std::max(most, gptq::rows_of(replica, plan.grid.replicas, rows, plan.partition.row_tile).count);
  }
  return most;
}

/// Bytes a second that one rank receives from others of its stage.
double link_of(const Plan& plan, const MachineRates& rates) {
  return plan.grid.replicas > rates.gpus_per_node ? rates.node_link_bytes : rates.link_bytes;
}

double bytes_of(gptq::PanelShape shape) { return as_double(shape.rows * shape.cols) * sizeof(float); }

/// Right-looking over panels with look-ahead 1, as gptq/factorization does it: when the last rank is done.
double factorization_seconds(const gptq::PanelLayout& layout, int ranks, double link, const MachineRates& rates) {
  std::vector<double> clock(static_cast<std::size_t>(ranks), 0.0);
  const auto owner = [&](int k) -> double& { return clock[static_cast<std::size_t>(k % ranks)]; };
  const auto panel = [&](int k) {
    const auto shape = layout.at(k);
    const double cols = as_double(shape.cols);
    return as_double(shape.rows) * cols * cols / rates.panel_flops + cols * rates.factor_column_seconds;
  };
  double wire = 0;  // when the broadcasts so far are complete
  const auto factor_and_send = [&](int k) {
    owner(k) += panel(k);
    if (ranks > 1 && k > 0) {
      wire = std::max(wire, owner(k)) + bytes_of(layout.at(k)) / link;
    }
    return wire;
  };
  double arrival = factor_and_send(layout.count() - 1);
  for (int k = layout.count() - 1; k > 0; --k) {
    for (int r = 0; r < ranks; ++r) {
      if (r != k % ranks) {
        clock[static_cast<std::size_t>(r)] = std::max(clock[static_cast<std::size_t>(r)], arrival);
      }
    }
    for (int target = k - 1; target >= 0; --target) {
      const auto shape = layout.at(target);
      owner(target) +=
          2 * as_double(shape.rows) * as_double(shape.cols) * as_double(layout.at(k).cols) / rates.update_flops;
      if (target == k - 1) {
        arrival = factor_and_send(target);
      }
    }
  }
  return *std::max_element(clock.begin(), clock.end());
}

/// What remains of the exchange of H's partial sums when XᵀX is done: panels travel in batches, each while the next
/// one is computed.
double exposed_reduction_seconds(const gptq::PanelLayout& layout, int ranks, double link, double hessian) {
  constexpr int together = 4;
  double total = 0;
  double last = 0;
  for (int k = layout.count() - 1; k >= 0; k -= std::min(ranks, together)) {
    last = as_double(ranks - 1) * bytes_of(layout.at(k)) / link;
    total += last;
  }
  return ranks == 1 ? 0.0 : std::max(last, total - hessian);
}

/// Bytes that the forward pass moves beside its products, a token and column of the hidden state: norms, residuals,
/// activations, and attention's outputs, of two bytes an element.
constexpr double elementwise_bytes = 26;
/// Passes over X, read and written, that put its columns into factor order and back, and sum its squares.
constexpr double gather_bytes = 2 * 2 * 2 + 2;
/// A weight that is quantized: written from codes, read again, converted when it was loaded.
constexpr double install_bytes = 8;

}  // namespace

BlockCost block_cost(const BlockSpec& block, const Plan& plan, const MachineRates& rates, int bits) {
  BlockCost cost;
  const int ranks = plan.grid.replicas;
  const double link = link_of(plan, rates);
  const double tokens = as_double(most_tokens(plan));
  double weights = 0;
  double packed = 0;
  double tail = 0;
  for (const Phase phase : phases) {
    const std::int64_t n = block.input_width(phase);
    const double cols = as_double(n);
    std::int64_t all_rows = 0;
    for (const auto& linear : block.group(phase)) {
      all_rows += linear.rows;
    }
    const double rows = as_double(most_rows(plan, all_rows));
    weights += as_double(all_rows) * cols;
    packed += as_double(all_rows) * cols * bits / 8;
    tail = 2 * tokens * as_double(all_rows) * cols / rates.product_flops;
    cost.forward += tail + tokens * cols * elementwise_bytes / 4 / rates.copy_bytes;
    const double gram = tokens * cols * cols / rates.gram_flops + tokens * cols * gather_bytes / rates.copy_bytes;
    cost.hessian += gram + rates.phase_seconds / 2;
    const gptq::PanelLayout layout(n, plan.partition.panel_columns);
    const bool whole = ranks == 1 || n <= plan.partition.whole_columns;
    cost.factor += factorization_seconds(layout, whole ? 1 : ranks, link, rates);
    cost.grids += rows * cols / rates.grids_weights;
    const double solve = 3 * rows * cols * cols / rates.solve_flops + cols * rates.solve_column_seconds;
    cost.solve += solve;
    cost.finish += (as_double(all_rows) + rows) / 2 * cols * rates.finish_weight_seconds + rates.phase_seconds;
    if (ranks > 1) {
      double factor_bytes = 0;
      for (int k = 0; k < layout.count(); ++k) {
        factor_bytes += bytes_of(layout.at(k));
      }
      cost.exchange +=
          exposed_reduction_seconds(layout, ranks, link, gram) +
          (whole ? factor_bytes / link : std::max(bytes_of(layout.at(0)) / link, factor_bytes / link - solve));
    }
  }
  const auto& attention = block.attention;
  cost.forward += 2 * tokens * as_double(plan.seqlen) * as_double(attention.query_width()) / rates.attention_flops +
                  weights * install_bytes / rates.copy_bytes;
  if (ranks > 1) {
    const double weight_bytes = 2 * weights;
    cost.exchange +=
        packed * as_double(ranks - 1) / as_double(ranks) / link + std::max(0.0, weight_bytes / link - tail);
  }
  return cost;
}

Ceilings ceilings_of(const nlohmann::json& bench, const std::string& path) {
  const auto results = io::get<nlohmann::json>(bench, "results", path);
  const auto rate = [&](std::string_view operation) {
    for (const auto& row : results) {
      if (io::get<std::string>(row, "operation", path) == operation) {
        return io::get<double>(row, "rate", path) * 1e12;
      }
    }
    throw Error(ErrorKind::input,
                fmt::format("{}: got no result \"{}\", expected what gptqd_kernel_bench --json writes "
                            "on a GPU",
                            path, operation));
  };
  return {.half_flops = rate("ceiling: BF16 GEMM"),
          .float_flops = rate("ceiling: F32 GEMM"),
          .copy_bytes = rate("ceiling: copy")};
}

BlockCost block_floor(const BlockSpec& block, const Plan& plan, const Ceilings& ceilings) {
  BlockCost floor;
  const double tokens = as_double(plan.tokens());
  const double accurate_flops = std::max(ceilings.float_flops, ceilings.half_flops / 3);
  for (const Phase phase : phases) {
    const double cols = as_double(block.input_width(phase));
    double rows = 0;
    for (const auto& linear : block.group(phase)) {
      rows += as_double(linear.rows);
    }
    floor.forward += 2 * tokens * rows * cols / ceilings.half_flops;
    floor.hessian += tokens * cols * cols / ceilings.half_flops;
    floor.factor += cols * cols * cols / 3 / accurate_flops;
    floor.solve += rows * cols * cols / accurate_flops;
  }
  floor.forward += 2 * tokens * as_double(plan.seqlen) * as_double(block.attention.query_width()) / ceilings.half_flops;
  return floor;
}

MeasuredRun measured_run(const nlohmann::json& report, const std::string& path) {
  MeasuredRun run;
  const auto fingerprint = io::get<nlohmann::json>(report, "fingerprint", path);
  const auto calibration = io::get<nlohmann::json>(fingerprint, "calibration", path);
  const auto partition = io::get<nlohmann::json>(fingerprint, "partition", path);
  run.model = io::get<std::string>(report, "model", path);
  run.backend = io::get<std::string>(io::get<nlohmann::json>(fingerprint, "environment", path), "backend", path);
  run.ranks = io::get<int>(report, "ranks", path);
  run.stages = io::get<int>(report, "stages", path);
  run.samples = io::get<std::int64_t>(calibration, "samples", path);
  run.seqlen = io::get<std::int64_t>(calibration, "seqlen", path);
  run.micro_batch_samples = io::get<std::int64_t>(fingerprint, "micro_batch_samples", path);
  run.partition = {.leaves = io::get<int>(partition, "leaves", path),
                   .panel_columns = io::get<std::int64_t>(partition, "panel_columns", path),
                   .row_tile = io::get<std::int64_t>(partition, "row_tile", path)};
  run.bits = io::get<int>(io::get<nlohmann::json>(fingerprint, "spec", path), "bits", path);
  if (const auto where = activations_from_name(io::get_or<std::string>(report, "activations", "resident", path))) {
    run.activations = *where;
  }
  for (const auto bytes : io::get<std::vector<std::int64_t>>(report, "peak_bytes_per_rank", path)) {
    run.peak_bytes = std::max(run.peak_bytes, bytes);
  }
  std::int64_t ranks_with_blocks = 0;
  for (const auto& blocks : io::get<std::vector<nlohmann::json>>(report, "rank_seconds", path)) {
    MeasuredRun::Rank rank;
    const std::size_t first = blocks.size() > 1 ? 1 : 0;
    const auto count = static_cast<double>(blocks.size() - std::min(first, blocks.size()));
    const auto mean = [&](std::string_view key) {
      double sum = 0;
      for (std::size_t i = first; i < blocks.size(); ++i) {
        sum += io::get<double>(blocks.at(i), std::string(key), path);
      }
      return count > 0 ? sum / count : 0.0;
    };
    rank = {.wall = mean("wall"),
            .idle = mean("idle"),
            .exposed_transfers = mean("exposed_transfers"),
            .transfers = mean("transfers"),
            .transfer_bytes = mean("transfer_bytes"),
            .load = mean("load"),
            .write = mean("write")};
    for (const auto& stage : block_stages) {
      run.mean.*stage.seconds += mean(stage.name);
    }
    ranks_with_blocks += blocks.empty() ? 0 : 1;
    run.wall = std::max(run.wall, rank.wall);
    run.by_rank.push_back(rank);
  }
  if (ranks_with_blocks == 0) {
    throw Error(ErrorKind::input, fmt::format("{}: the run found all blocks finished and has no seconds to tell; give "
                                              "the report of a run that computed some",
                                              path));
  }
  for (const auto& stage : block_stages) {
    run.mean.*stage.seconds /= as_double(ranks_with_blocks);
  }
  return run;
}

void Calibration::add(const BlockCost& measured, const BlockCost& predicted) {
  for (const auto& stage : block_stages) {
    measured_.*stage.seconds += measured.*stage.seconds;
    predicted_.*stage.seconds += predicted.*stage.seconds;
  }
  ++count_;
}

BlockCost Calibration::apply(BlockCost cost) const {
  for (const auto& stage : block_stages) {
    const double measured = measured_.*stage.seconds;
    const double predicted = predicted_.*stage.seconds;
    if (measured > 0 && predicted > 0) {
      cost.*stage.seconds *= measured / predicted;
    }
  }
  return cost;
}

}  // namespace gptqd::pipeline
