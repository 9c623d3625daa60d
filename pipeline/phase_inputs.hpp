#pragma once
/// @file X, the input of a block's phase for all calibration tokens of a rank, and where it lives.
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gptq/hessian.hpp"
#include "kernels/backend.hpp"
#include "pipeline/memory_plan.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// Samples that are computed together.
struct MicroBatch {
  int leaf = 0;
  std::int64_t row = 0;  ///< of this replica's tokens
  std::int64_t rows = 0;
  std::int64_t first_sample = 0;  ///< of the whole calibration set
};

/// What PhaseInputs needs to know; the references outlive it.
struct PhaseInputsContext {
  Backend& backend;
  Stream& stream;  ///< of the forward pass
  std::span<const MicroBatch> batches;
  DType dtype = DType::f32;
  PhaseWidths widths;
};

/// The inputs of the phase that is computed and of the one before, micro-batch by micro-batch.
class PhaseInputs {
 public:
  /// Enqueues the work that makes a micro-batch's input of a phase from that of the phase before.
  using Compute = std::function<void(const MicroBatch& batch, ConstAnyView<2> previous, AnyView<2> input)>;

  virtual ~PhaseInputs() = default;

  /// Calls `compute` for each micro-batch in order. `previous` is empty without `before`, `input` without `phase`.
  /// Afterwards the input of `phase` is there, that of `before` is not.
  virtual void advance(const BlockSpec& block, std::optional<Phase> before, std::optional<Phase> phase,
                       const Compute& compute) = 0;
  /// A micro-batch's input of the phase that was computed last: [rows, width], dense; host memory where upload() says
  /// so.
  virtual AnyView<2> place(const BlockSpec& block, Phase phase, const MicroBatch& batch) const = 0;
  /// The stream that brings host memory to the device, behind what advance() enqueued; null: X is there.
  virtual Stream* upload() = 0;
};

/// On the device: a buffer for the inputs of attention_in and mlp_in, one for those of attention_out and mlp_out.
/// Or parked in page-locked host memory, where each micro-batch has one place for its inputs of all phases, and two
/// micro-batches at a time on the device.
std::unique_ptr<PhaseInputs> make_phase_inputs(Activations where, const PhaseInputsContext& context);

}  // namespace gptqd::pipeline
