#pragma once
/// @file Looks a quantized model over: will engines load it, and does it hold the weights that it should?
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/verify/report.hpp"

namespace gptqd::pipeline {

struct VerifyRequest {
  std::filesystem::path artifact;
  std::optional<std::filesystem::path> against = std::nullopt;  ///< the float model that it was made from
  std::vector<int> tensor_parallel{1, 2, 4, 8};                 ///< numbers of GPUs to try
  int threads = 2;
};

/// Reads the whole artifact once, layer by layer, and the float model beside it where there is one. Writes nothing.
///
/// Whatever is wrong with the artifact becomes a failed check: hostile files end in a report.
/// @param note  gets a line now and then
/// @throws Error (input) when the float model cannot be read
VerifyReport verify_artifact(const VerifyRequest& request, const std::function<void(const std::string&)>& note);

}  // namespace gptqd::pipeline
