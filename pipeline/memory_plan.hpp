#pragma once
/// @file Where activations live, and how much memory that takes.
#include <cstdint>
#include <optional>
#include <string_view>

#include "gptq/quant_spec.hpp"
#include "kernels/backend.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

struct Plan;

/// Where X, the input of a phase for all calibration tokens of a rank, lives. The bits of results are the same.
enum class Activations : std::uint8_t {
  resident,  ///< on the device
  parked,    ///< in page-locked host memory, brought to the device micro-batch by micro-batch beside the work
};
std::string_view name_of(Activations activations);
/// Nothing for "auto". @throws Error (usage) naming the option and the possible words
std::optional<Activations> activations_from_name(std::string_view name);

/// Whether a phase's input lies apart from those of the phases beside it: attention_out and mlp_out.
bool is_wide(Phase phase);

/// Columns of X, the most of all blocks.
struct PhaseWidths {
  std::int64_t narrow = 0;  ///< of attention_in and mlp_in
  std::int64_t wide = 0;    ///< of attention_out and mlp_out
  std::int64_t widest() const { return narrow > wide ? narrow : wide; }
};
PhaseWidths phase_widths(const ModelSpec& model);

/// What decides how much memory a rank takes, besides the plan.
struct MemorySettings {
  gptq::QuantSpec spec = {};
  MemoryKind kind = MemoryKind::cuda;      ///< of the device; host: what is parked takes the same memory
  DType compute = DType::f16;              ///< of activations and weights on the device
  std::int64_t gram_tokens = 0;            ///< PieceSizes
  bool keeps_hidden_before_block = false;  ///< --no-true-sequential: the float block's hidden states beside the others
};

/// Bytes of memory.
struct MemoryBytes {
  std::int64_t device = 0;
  std::int64_t host = 0;  ///< page-locked for parked activations; 0 where it is the device's memory
};

/// One rank's memory, of the rank that takes most.
struct RankMemory {
  MemoryBytes most;         ///< at once
  std::int64_t square = 0;  ///< of it what is of cols² size: H and its factor by panels
};

/// The account of what BlockQuantizer, BlockLoader and quantize_group hold at the same time, but for small tables.
RankMemory rank_memory(const ModelSpec& model, const Plan& plan, const MemorySettings& settings,
                       Activations activations);

/// Device memory that is left beside `needs` and what a backend's arena may hold beyond what is in use; below zero
/// where it does not fit.
std::int64_t device_bytes_left(const MemoryBytes& needs, const MemoryBytes& available);

}  // namespace gptqd::pipeline
