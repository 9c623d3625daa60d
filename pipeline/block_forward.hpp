#pragma once
/// @file The forward pass, a phase of a block at a time, a micro-batch at a time; and the model's two ends.
#include <optional>

#include "kernels/backend.hpp"
#include "pipeline/block_weights.hpp"

namespace gptqd::pipeline {

/// Runs blocks over micro-batches of whole samples. Each GEMM of the model runs once a micro-batch.
class BlockForward {
 public:
  /// @param most_tokens  the largest micro-batch
  BlockForward(Backend& backend, Stream& stream, const ModelSpec& model, std::int64_t seqlen, std::int64_t most_tokens);

  /// Computes the input of `phase` from what the phase before left; with nullopt leaves the block.
  ///
  ///   attention_in:  input = norm(hidden) (hidden, with norms behind)
  ///   attention_out: previous = attention_in's input;  input = attention(previous Wqkvᵀ)
  ///   mlp_in:        previous = attention_out's input; hidden += previous Woᵀ; input = norm(hidden)
  ///   mlp_out:       previous = mlp_in's input;        input = activation(previous W1ᵀ), or its gated form
  ///   nullopt:       previous = mlp_out's input;       hidden += previous W2ᵀ
  /// @param hidden    [tokens, hidden], updated in place
  /// @param previous  [tokens, width of the phase before]
  /// @param input     [tokens, width of this phase]; must not overlap `previous`
  void advance(const BlockSpec& block, const BlockWeights& weights, std::optional<Phase> phase, AnyView<2> hidden,
               ConstAnyView<2> previous, AnyView<2> input);

  DType dtype() const { return dtype_; }

 private:
  void attend(const BlockSpec& block, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> out);
  void feed(const BlockSpec& block, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> out);
  /// The outputs of a phase's linears side by side, in memory that the next call uses again.
  AnyView<2> project(const BlockSpec& block, Phase phase, const BlockWeights& weights, ConstAnyView<2> x);
  void normalize(const NormSpec& spec, const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> y);
  void add_to_hidden(const BlockSpec& block, const NormSpec& norm, const LinearSpec& linear,
                     const BlockWeights& weights, ConstAnyView<2> x, AnyView<2> hidden);

  Backend& backend_;
  Stream& stream_;
  std::int64_t seqlen_;
  DType dtype_;
  Buffer projected_;
  std::int64_t rope_half_ = 0;
  Buffer rope_cos_;  ///< f32 [seqlen, rope_half]; empty without rotary embeddings
  Buffer rope_sin_;
  Buffer alibi_slopes_;  ///< f32 [heads]; empty without ALiBi
};

/// From token ids to hidden states.
class Embedding {
 public:
  Embedding(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
            std::int64_t seqlen);
  /// hidden <- embeddings of whole samples, positions from 0.
  /// @param ids     i32 [samples · seqlen], on the device
  void run(ConstTensorView<std::int32_t, 1> ids, AnyView<2> hidden);

 private:
  Backend& backend_;
  Stream& stream_;
  const ModelSpec& model_;
  std::int64_t seqlen_;
  DType table_dtype_;
  Buffer token_table_;
  Buffer position_table_;
  Buffer position_ids_;  ///< i32 [seqlen]
  std::optional<DeviceLinear> project_in_;
  std::optional<DeviceNorm> norm_;
};

/// From hidden states to the head's input, and to losses.
class Head {
 public:
  Head(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
       std::int64_t most_tokens);
  /// Final norm and projection: the rows that the head multiplies. The view stays valid until the next call.
  /// @param hidden  [tokens, hidden], normalized in place
  AnyView<2> input(AnyView<2> hidden);
  /// nll[t] of targets[t] (−1: none), see CrossEntropyArgs. Returns input(hidden).
  AnyView<2> cross_entropy(AnyView<2> hidden, ConstTensorView<std::int32_t, 1> targets, TensorView<double, 1> nll);
  /// [vocabulary, embedding_width], compute dtype.
  ConstAnyView<2> table() const { return head_.any_view<2>(dtype_, {model_.vocabulary, model_.embedding_width}); }

 private:
  Backend& backend_;
  Stream& stream_;
  const ModelSpec& model_;
  DType dtype_;
  std::optional<DeviceNorm> norm_;
  std::optional<DeviceLinear> project_out_;
  Buffer projected_;
  Buffer head_;
};

}  // namespace gptqd::pipeline
