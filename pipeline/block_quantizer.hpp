#pragma once
/// @file Quantizes one block after another on this rank's share of the calibration samples.
#include <memory>
#include <optional>
#include <vector>

#include "gptq/quantize_group.hpp"
#include "io/corpus.hpp"
#include "io/packed_linear.hpp"
#include "pipeline/block_forward.hpp"
#include "pipeline/layer_specs.hpp"
#include "pipeline/phase_inputs.hpp"
#include "pipeline/plan.hpp"

namespace gptqd::pipeline {

/// Which activations a block's Hessians and the next blocks see.
enum class Propagation : std::uint8_t {
  quantized,    ///< of the quantized model so far: the errors of earlier linears are seen, and made up for
  unquantized,  ///< of the float model: no block waits for the quantization of another
};
std::string_view name_of(Propagation propagation);

struct BlockQuantizerSettings {
  LayerSpecs layers;
  bool true_sequential = true;
  Propagation propagation = Propagation::quantized;
};

/// Seconds of wall time that the parts of a block took on this rank.
struct BlockSeconds {
  double forward = 0;
  gptq::StageSeconds quantize;
  double total = 0;

  nlohmann::json to_json() const;
};

/// The quantized linears of a block, in phase order.
struct BlockResult {
  std::vector<gptq::QuantizedLinear> linears;
  BlockSeconds seconds;
};

/// Whether any of the settings needs calibration activations: round-to-nearest on the weights' own ranges does not.
bool needs_calibration(const LayerSpecs& layers);

class BlockQuantizer {
 public:
  /// @param replica  this rank among the ranks of the stage (the team's)
  BlockQuantizer(gptq::Team team, const ModelSpec& model, const Plan& plan, int replica,
                 BlockQuantizerSettings settings);

  /// Hidden states of this replica's samples: [own tokens, hidden], compute dtype. Empty without calibration.
  AnyView<2> hidden() const;
  /// Start of the model: hidden <- embeddings of this replica's samples. Does nothing without calibration.
  void embed(const io::TokenWindows& windows, const io::CheckpointReader& tensors);
  /// Runs a block as it is over the hidden states: one that is quantized already, or a float one.
  void replay(const BlockSpec& block, const BlockWeights& weights);
  /// Quantizes a block's linears phase by phase, all but those that stay as they are, then leaves the hidden states
  /// behind the block, quantized or not (Propagation). Collective over the team.
  /// @param leaving  called when all linears are quantized: transfers that it starts go on beside the rest of the pass
  BlockResult quantize(const BlockSpec& block, BlockWeights& weights, const std::function<void(Phase)>& entering,
                       const std::function<void()>& leaving);

 private:
  /// @param square_sums  Σ x² of the phase's inputs by leaf, added to; null: not wanted
  void advance_all(const BlockSpec& block, const BlockWeights& weights, std::optional<Phase> phase, AnyView<2> hidden,
                   const Buffer* square_sums = nullptr);
  void run_block(const BlockSpec& block, const BlockWeights& weights, AnyView<2> hidden);
  /// Zeros for the sums of squares that the order of columns comes from; empty where it needs none.
  Buffer make_square_sums(const gptq::QuantSpec* spec, std::int64_t width) const;
  gptq::HessianInput hessian_input(const BlockSpec& block, Phase phase, const Buffer& square_sums) const;
  std::optional<std::string> find_non_finite(const BlockSpec& block, Phase phase) const;
  void install(const BlockSpec& block, BlockWeights& weights, std::span<const gptq::QuantizedLinear> linears);

  gptq::Team team_;
  const ModelSpec& model_;
  const Plan& plan_;
  BlockQuantizerSettings settings_;
  comm::LeafRange leaves_;
  IndexRange samples_;
  std::vector<MicroBatch> batches_;
  std::unique_ptr<BlockForward> forward_;
  Buffer hidden_;
  std::unique_ptr<PhaseInputs> inputs_;
};

/// A quantized linear on its way from the device to a shard.
class FetchedLinear {
 public:
  /// Enqueues the copies. The linear and this must stay until the stream has passed.
  FetchedLinear(Backend& backend, Stream& stream, const gptq::QuantizedLinear& linear, const gptq::QuantSpec& spec);
  /// What one takes of the host's memory, rounded up as a pool may.
  static std::int64_t host_bytes(std::int64_t rows, std::int64_t cols, const gptq::QuantSpec& spec);
  /// The form of shards and artifacts, on any thread, once the stream has passed.
  io::PackedLinear packed() &&;

 private:
  io::PackedLinear linear_;
  std::int64_t groups_ = 0;
  Buffer codes_;   // host: u32 [words, rows]
  Buffer scales_;  // host: f32 [rows, groups]
  Buffer zeros_;   // host: u8 [rows, groups]
};

}  // namespace gptqd::pipeline
