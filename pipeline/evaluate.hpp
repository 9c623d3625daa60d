#pragma once
/// @file Perplexity of a float model or of one of our artifacts.
#include "comm/world.hpp"
#include "kernels/backend.hpp"
#include "pipeline/calibration.hpp"

namespace gptqd::pipeline {

struct EvaluateConfig {
  std::filesystem::path model;  ///< a float folder, or a GPTQ artifact
  EvaluationRequest text;
  std::int64_t micro_batch_tokens = 4096;
};

/// perplexity = exp(nll); nll = mean over windows of the mean cross-entropy of the seqlen − 1 predicted tokens, in nats
/// (the convention of the GPTQ paper's code).
struct Evaluation {
  double perplexity = 0;
  double nll = 0;
  std::int64_t windows = 0;
  std::int64_t seqlen = 0;
  std::int64_t tokens = 0;        ///< predicted: windows · (seqlen − 1)
  std::int64_t weight_bytes = 0;  ///< of the model's files
  bool quantized = false;
  double seconds = 0;
};

/// Collective over the world, the same result on every rank. Block by block over all windows, which the ranks split, so
/// one block's weights are in memory at a time.
Evaluation evaluate(comm::World& world, Backend& backend, const EvaluateConfig& config);

}  // namespace gptqd::pipeline
