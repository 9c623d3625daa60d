#pragma once
/// @file Models of known shapes with generated weights: to plan and to measure without hundreds of gigabytes.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/checkpoint_reader.hpp"
#include "io/corpus.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// Whether a model's name asks for generated weights: "synthetic:NAME[:blocks=N][:vocab=V]".
bool is_synthetic(std::string_view name);

/// What stands for a model folder.
struct SyntheticModel {
  nlohmann::json config;  ///< as the published model's config.json
  std::unique_ptr<io::CheckpointReader> tensors;
};

/// The named shape: opt-6.7b, opt-66b, opt-175b, bloom-7b1, bloom-176b, llama-3-8b, llama-3-70b, mistral-7b, qwen3-32b,
/// with N blocks instead of its own and a vocabulary of V.
///
/// Element i of a tensor is a hash of (the tensor's name, i), spread evenly over an interval whose width keeps
/// activations of one size through all blocks: any part of any tensor is the same wherever and whenever it is made.
/// @throws Error (usage) naming the shapes, for a name or setting that is not among them
SyntheticModel make_synthetic(std::string_view name);

/// Token ids likewise, spread evenly over the vocabulary.
io::TokenWindows synthetic_tokens(std::int64_t vocabulary, std::int64_t samples, std::int64_t seqlen,
                                  std::uint64_t seed);

}  // namespace gptqd::pipeline
