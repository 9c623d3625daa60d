#pragma once
/// @file What the paper's published code makes of the demo models (tests/golden/gptq/MODEL.json), and the same numbers
/// of our own runs.
#include <gtest/gtest.h>

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

/// One of the published code's runs.
struct ReferenceCase {
  std::string model;          ///< opt-7m, bloom-7m, llama-7m
  std::string configuration;  ///< as the file calls it: w4-g128-sym

  bool operator==(const ReferenceCase&) const = default;
};
/// For gtest: "opt_7m_w4_g128_sym".
std::string test_name(const ::testing::TestParamInfo<ReferenceCase>& info);
void PrintTo(const ReferenceCase& which, std::ostream* out);

struct ReferenceRun {
  std::filesystem::path model;
  int bits = 0;
  Options options;  ///< that ask our program for the same
  std::vector<LayerLosses> layers;
  double perplexity = 0;  ///< first 128 windows of eval.txt
};

/// Of each model some configurations, together one of each kind of grid, order and width; and all others.
std::vector<ReferenceCase> chosen_reference_cases();
std::vector<ReferenceCase> other_reference_cases();
ReferenceRun reference_run(const ReferenceCase& which);

/// The losses of a finished run, by module.
std::map<std::string, LayerLosses> losses_of(const std::filesystem::path& out);

/// Quantizes with all calibration tokens that the reference had. A test failure unless it succeeds.
void quantize_fully(const std::filesystem::path& model, const std::filesystem::path& out, const Options& settings);

/// Perplexity of eval.txt in windows of 512, as eval --json tells it; null and a test failure where it fails.
/// @param windows  the first so many; 0: all
nlohmann::json evaluate(const std::filesystem::path& model, int windows);

}  // namespace gptqd::jobs::test
