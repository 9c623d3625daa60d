#pragma once
/// @file How long a block takes on GPUs, before anything runs: from rates.
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/model_spec.hpp"
#include "pipeline/plan.hpp"

namespace gptqd::pipeline {

/// What one GPU and its links do in a second. The defaults were measured on NVIDIA H200s (docs/results.md); links
/// between nodes are those of a 400 Gbit/s adapter a GPU.
struct MachineRates {
  double product_flops = 700e12;           ///< activations · weights: 2 tokens · rows · cols
  double attention_flops = 480e12;         ///< causal, the half that counts: 2 tokens · seqlen · query width
  double gram_flops = 585e12;              ///< XᵀX's lower half: tokens · cols²
  double panel_flops = 88e12;              ///< factoring one panel: rows · cols²
  double update_flops = 146e12;            ///< trailing update: 2 rows · cols · cols
  double solve_flops = 282e12;             ///< solve and losses: three times rows · cols²
  double grids_weights = 34e9;             ///< weights whose ranges are searched, where XᵀX hides most of it
  double copy_bytes = 4.2e12;              ///< device memory, read and written
  double factor_column_seconds = 0.77e-6;  ///< a column's turn in the factorization, however few rows there are
  double solve_column_seconds = 0.55e-6;   ///< the same in the solve
  double finish_weight_seconds = 1.6e-11;  ///< packing and accounting
  double phase_seconds = 0.2e-3;           ///< the host's share of a phase
  double link_bytes = 300e9;               ///< between GPUs of a node, one direction
  double node_link_bytes = 45e9;           ///< between nodes, a GPU's share
  int gpus_per_node = 8;
};

/// Seconds that the slowest rank spends on one block.
struct BlockCost {
  double forward = 0;
  double hessian = 0;
  double factor = 0;
  double grids = 0;
  double solve = 0;
  double finish = 0;
  double exchange = 0;  ///< transfers that nothing hides, beside those inside the factorization

  double total() const { return forward + hessian + factor + grids + solve + finish + exchange; }
};

/// The stages of a block, by the names that reports use.
struct Stage {
  std::string_view name;
  double BlockCost::*seconds;
};
inline constexpr std::array block_stages{Stage{"forward", &BlockCost::forward}, Stage{"hessian", &BlockCost::hessian},
                                         Stage{"factor", &BlockCost::factor},   Stage{"grids", &BlockCost::grids},
                                         Stage{"solve", &BlockCost::solve},     Stage{"finish", &BlockCost::finish}};

/// From shares of work, rates, and the order of the distributed factorization played through panel by panel.
BlockCost block_cost(const BlockSpec& block, const Plan& plan, const MachineRates& rates, int bits);

/// What one GPU does at most, as gptqd_kernel_bench measures it.
struct Ceilings {
  double half_flops = 0;   ///< GEMM of bf16
  double float_flops = 0;  ///< GEMM of fp32
  double copy_bytes = 0;   ///< device memory, read and written
};
/// @param bench  what gptqd_kernel_bench --json writes
/// @throws Error (input) naming `path` and what is missing
Ceilings ceilings_of(const nlohmann::json& bench, const std::string& path);
/// The arithmetic of a block at the ceilings, on one GPU, T tokens, linears [m, n]: forward 2Tmn and the causal half of
/// attention, and H Tn² (its lower half), at half_flops; factorization n³/3 and solve mn² at the rate of fp32 accuracy:
/// float_flops, or three fp16 products if those are faster. Stages without arithmetic to speak of are 0.
BlockCost block_floor(const BlockSpec& block, const Plan& plan, const Ceilings& ceilings);

/// What a finished run's report says of its speed.
struct MeasuredRun {
  std::string model;    ///< as --model named it
  std::string backend;  ///< as the fingerprint names it
  int ranks = 1;
  int stages = 1;
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t micro_batch_samples = 1;
  gptq::Partition partition;
  int bits = 4;
  Activations activations = Activations::resident;
  std::int64_t peak_bytes = 0;  ///< of the rank with most
  BlockCost mean;               ///< stages on average over ranks and blocks; no exchange
  double wall = 0;              ///< from block to block on average, at the slowest rank
  /// One a rank, on average over blocks.
  struct Rank {
    double wall = 0;
    double idle = 0;
    double exposed_transfers = 0;
    double transfers = 0;
    double transfer_bytes = 0;
    double load = 0;
    double write = 0;
  };
  std::vector<Rank> by_rank;
};
/// Blocks but the first, which pays for starting, where there are several.
/// @param report  report.json of a quantize run
/// @throws Error (input) naming `path` and what is missing, also for a run that computed nothing
MeasuredRun measured_run(const nlohmann::json& report, const std::string& path);

/// Factors by which a machine's stages take longer than `rates` say: from runs on one rank, whose block is predicted by
/// `predicted`, the sums of both over all of them.
class Calibration {
 public:
  void add(const BlockCost& measured, const BlockCost& predicted);
  /// `cost` with each stage corrected by its factor; unchanged without runs.
  BlockCost apply(BlockCost cost) const;
  bool empty() const { return count_ == 0; }

 private:
  BlockCost measured_;
  BlockCost predicted_;
  int count_ = 0;
};

}  // namespace gptqd::pipeline
