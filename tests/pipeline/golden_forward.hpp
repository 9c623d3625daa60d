#pragma once
/// @file A model's forward pass with all its values, and what transformers computes for the same (tests/golden/models).
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "pipeline/block_forward.hpp"

namespace gptqd::pipeline::test {

/// Largest difference, as a share of the largest expected value, tensor by tensor.
inline constexpr double golden_tolerance = 2e-4;

/// All values of a forward pass, under the names that the golden files use, and the mean loss.
struct Trace {
  std::map<std::string, std::vector<float>> values;
  double nll = 0;
};

/// expected.safetensors and expected.json of a golden model.
struct Golden {
  std::vector<std::int32_t> ids;  ///< [samples, seqlen]
  std::int64_t seqlen = 0;
  Trace trace;

  std::int64_t samples() const { return std::ssize(ids) / seqlen; }
};
Golden read_golden(const std::filesystem::path& folder);

using LoadBlock = std::function<BlockWeights(std::int64_t block)>;

/// Runs `ids`, whole samples of `seqlen` tokens, through all blocks and the head.
Trace run_forward(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
                  const std::vector<std::int32_t>& ids, std::int64_t seqlen, const LoadBlock& load);

/// The same on the CPU, from a folder.
Trace run_model(const std::filesystem::path& folder, const std::vector<std::int32_t>& ids, std::int64_t seqlen,
                const std::string& config = "config.json", int threads = 2);

/// Largest |got - expected| as a share of the largest |expected|; infinity for a NaN.
double distance(const std::vector<float>& got, const std::vector<float>& expected);

}  // namespace gptqd::pipeline::test
