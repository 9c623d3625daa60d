#pragma once
/// @file What the paper's published code makes of the demo model (tests/golden/gptq/opt-7m.json), and the same numbers
/// of our own runs.
#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {

/// Plain sums over all calibration tokens: loss = tr(δHδᵀ), weight_norm = tr(WHWᵀ).
struct LayerLosses {
  std::string module;
  double rtn_loss = 0;
  double gptq_loss = 0;
  double weight_norm = 0;
  double trace = 0;
  std::int64_t dead_columns = 0;
};

struct ReferenceRun {
  int bits = 0;
  Options options;  ///< that ask our program for the same
  std::vector<LayerLosses> layers;
  double perplexity = 0;  ///< first 128 windows of eval.txt
};

/// All configurations of the file.
const std::vector<std::string>& reference_names();
ReferenceRun reference_run(const std::string& name);
/// gtest's names have no dashes.
std::string test_name(std::string configuration);

/// The losses of a finished run, by module.
std::map<std::string, LayerLosses> losses_of(const std::filesystem::path& out);

/// Quantizes with all calibration tokens that the reference had. A test failure unless it succeeds.
void quantize_fully(const std::filesystem::path& model, const std::filesystem::path& out, const Options& settings);

/// Perplexity of eval.txt in windows of 512, as eval --json tells it; null and a test failure where it fails.
/// @param windows  the first so many; 0: all
nlohmann::json evaluate(const std::filesystem::path& model, int windows);

}  // namespace gptqd::jobs::test
