#pragma once
/// @file The tokens behind the Hessians, and those of an evaluation, the same on every rank.
#include <filesystem>
#include <optional>
#include <vector>

#include "comm/world.hpp"
#include "io/corpus/sampling.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

struct CalibrationRequest {
  std::vector<io::TextSource> sources;  ///< texts, data sets, or token ids (.safetensors, .npy); at least one
  std::optional<std::int64_t> samples;  ///< default: 128, or what a single token file has if fewer
  std::optional<std::int64_t> seqlen;   ///< default: the shortest token file's; else 2,048 or the model's maximum
  std::uint64_t seed = 0;
  io::Sampling sampling = io::Sampling::random;
  std::optional<io::Documents> documents;  ///< default: io::SamplingRequest's
};

/// Windows of the texts, see io::calibration_text_windows; token files give their first ones. Several sources give
/// equal numbers of windows (the first ones one more where that does not divide), source after source, each the windows
/// that it would give alone with that number of samples. Rank 0 reads, all ranks get them. Collective over the world.
/// @throws Error (input, usage) for a text that is too short, windows longer than the model's positions, ids outside
///         its vocabulary, fewer samples than sources
io::TokenWindows calibration_windows(comm::World& world, const ModelSpec& model,
                                     const std::filesystem::path& model_folder, const CalibrationRequest& request);

struct EvaluationRequest {
  std::vector<io::TextSource> sources;  ///< at least one
  std::optional<std::int64_t> seqlen;   ///< of all texts; default as for calibration
  std::int64_t windows = 0;             ///< at most so many of each text; 0: all
};

/// One set of windows a source, all of one length, see io::evaluation_text_windows. Collective over the world.
/// @throws Error as calibration_windows
std::vector<io::TokenWindows> evaluation_windows(comm::World& world, const ModelSpec& model,
                                                 const std::filesystem::path& model_folder,
                                                 const EvaluationRequest& request);

}  // namespace gptqd::pipeline
