#pragma once
/// @file Quantized models small enough to be made in milliseconds, in memory, to be changed and written.
#include <filesystem>
#include <string>

#include "io/artifact/artifact_format.hpp"
#include "tests/support/host_model.hpp"

namespace gptqd::pipeline::test {

struct TinyOptions {
  std::string folder = "llama-gqa-rope3";  ///< in tests/golden/models
  io::ArtifactFormat format = io::ArtifactFormat::gptq;
  /// Of all linears; `reordered` makes groups of columns that do not stand side by side.
  io::LayerSettings settings{.bits = 4, .group_size = 16};
  /// Linears whose name ends so have these settings instead, where it is not empty.
  std::string other_suffix = {};
  io::LayerSettings other = {};
  /// Linears whose name ends so stay float, where it is not empty.
  std::string float_suffix = {};
};

/// The folder of the float model that a tiny artifact is made from.
std::filesystem::path tiny_source(const TinyOptions& options = {});

/// The float model's linears rounded to nearest, with config.json and all tensors. Not written yet.
gptqd::test::HostModel tiny_artifact(const TinyOptions& options = {});

}  // namespace gptqd::pipeline::test
