#pragma once
/// @file What verify found out.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/artifact/content.hpp"
#include "pipeline/verify/tensor_parallel.hpp"
#include "pipeline/verify/weights.hpp"

namespace gptqd::pipeline {

/// One thing that was checked.
struct Check {
  enum class Status : std::uint8_t { pass, warning, fail, skipped };
  struct Finding {
    Status status = Status::fail;
    std::string text;
  };

  std::string name;
  Status status = Status::pass;
  std::string summary = {};            ///< what was seen, in a few words
  std::vector<Finding> findings = {};  ///< the first few; failures before warnings
  std::int64_t left_out = 0;           ///< findings beyond those

  void fail(std::string text) { add(Status::fail, std::move(text)); }
  void warn(std::string text) { add(Status::warning, std::move(text)); }
  /// It could not be checked. @param why  replaces the summary
  void skip(std::string why);

 private:
  void add(Status found, std::string text);
};
std::string_view name_of(Check::Status status);

/// One quantized linear.
struct VerifiedLayer {
  io::LayerFormat format;
  CodeStatistics codes;
  std::optional<WeightDifference> difference = std::nullopt;
};

struct VerifyReport {
  std::string artifact;
  std::string format;  ///< empty when the folder could not be opened
  std::vector<Check> checks;
  std::vector<VerifiedLayer> layers;            ///< those that could be read, in file order
  std::vector<TensorParallel> tensor_parallel;  ///< empty for a model_type that we do not know
  nlohmann::json perplexity = nullptr;          ///< filled by who evaluates

  /// No check failed.
  bool passed() const;
  nlohmann::json to_json() const;
  /// For people: checks, findings, kernels, splits, and the worst layers.
  std::string to_text() const;
};

}  // namespace gptqd::pipeline
