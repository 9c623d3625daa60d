#pragma once
/// @file Perplexities of float models and of our artifacts, side by side on the same windows.
#include <functional>
#include <string>
#include <vector>

#include "comm/world.hpp"
#include "kernels/backend.hpp"
#include "pipeline/calibration.hpp"
#include "pipeline/paired_difference.hpp"

namespace gptqd::pipeline {

struct EvaluateConfig {
  std::vector<std::filesystem::path> models;  ///< float folders or artifacts; the others are compared to the first
  EvaluationRequest request;
  std::int64_t micro_batch_tokens = 4096;
  /// Hidden states that a rank may hold; more windows than that take several passes over the blocks, with equal
  /// results.
  std::int64_t max_hidden_bytes = 8'000'000'000;
  /// Where the logits go, if not empty: a safetensors file with `input_ids` i32 [windows, seqlen] and `logits`
  /// [windows, seqlen, vocabulary] in the compute dtype, to be compared with what other engines compute. For one model
  /// and one text, up to 1 GB.
  std::filesystem::path logits;
};

/// perplexity = exp(nll); nll = mean over windows of the mean cross-entropy of the seqlen − 1 predicted tokens, in nats
/// (the convention of the GPTQ paper's code).
struct TextEvaluation {
  io::TextSource source;
  double perplexity = 0;
  double nll = 0;
  std::int64_t windows = 0;
  std::int64_t seqlen = 0;
  std::int64_t tokens = 0;                                    ///< predicted: windows · (seqlen − 1)
  std::string hash;                                           ///< of the windows
  std::vector<double> window_nll;                             ///< of each window
  std::optional<PairedDifference> difference = std::nullopt;  ///< of the windows' nll to the first model's
};

struct ModelEvaluation {
  std::filesystem::path model;
  bool quantized = false;
  double bits = 16;               ///< a weight of the blocks' linears, on average
  std::int64_t weight_bytes = 0;  ///< of the model's files
  double seconds = 0;
  std::vector<TextEvaluation> texts;
};

/// Collective over the world, the same result on every rank. Block by block over all windows of all texts, which the
/// ranks split: one block's weights are in memory at a time, and each is read once a model (and pass).
///
/// @param note  gets lines on how far it is, on rank 0
/// @throws Error (input) before anything is computed when a model's tokenizer makes other windows of a text than the
///         first model's: nothing could be said about a difference then; (usage) for windows of one token, and for
///         logits of several models or texts or above 1 GB; (io) when the logits cannot be written
std::vector<ModelEvaluation> evaluate(comm::World& world, Backend& backend, const EvaluateConfig& config,
                                      const std::function<void(const std::string& line)>& note);

}  // namespace gptqd::pipeline
