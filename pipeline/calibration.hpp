#pragma once
/// @file The tokens behind the Hessians, and those of an evaluation, the same on every rank.
#include <filesystem>
#include <optional>

#include "comm/world.hpp"
#include "io/corpus.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

struct CalibrationRequest {
  std::filesystem::path file;           ///< text, or token ids (.safetensors)
  std::optional<std::int64_t> samples;  ///< default: 128, or what a token file has if fewer
  std::optional<std::int64_t> seqlen;   ///< default: a token file's; else 2,048 or the model's maximum
  std::uint64_t seed = 0;
};

/// Random windows of the text, tokenized once, as the published code draws them. Rank 0 reads, all ranks get them.
/// Collective over the world.
/// @throws Error (input, usage) for a text that is too short, windows longer than the model's positions, ids outside
/// its
///         vocabulary
io::TokenWindows calibration_windows(comm::World& world, const ModelSpec& model,
                                     const std::filesystem::path& model_folder, const CalibrationRequest& request);

struct EvaluationRequest {
  std::filesystem::path file;
  std::optional<std::int64_t> seqlen;
  std::int64_t windows = 0;  ///< at most so many; 0: all
};

/// Consecutive windows without overlap; a text is tokenized whole without special tokens. Collective over the world.
io::TokenWindows evaluation_windows(comm::World& world, const ModelSpec& model,
                                    const std::filesystem::path& model_folder, const EvaluationRequest& request);

}  // namespace gptqd::pipeline
