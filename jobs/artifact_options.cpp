#include "jobs/artifact_options.hpp"

#include <fmt/format.h>

#include "kernels/base/error.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

po::options_description artifact_options() {
  po::options_description options("Artifact", 100, 50);
  options.add_options()("format", po::value<std::string>()->value_name("NAME"),
                        "gptq, gptq_v2, compressed-tensors, gguf (llama.cpp), safetensors-float (dequantized); "
                        "default: gptq, or gptq_v2 for asymmetric grids")(
      "max-shard-size", po::value<double>()->default_value(4)->value_name("GB"),
      "largest file of weights in the artifact");
  return options;
}

std::optional<io::ArtifactFormat> artifact_format(const CommandLine& line) {
  return line.has("format") ? std::optional(io::artifact_format_from_name(line.get<std::string>("format")))
                            : std::nullopt;
}

std::int64_t max_shard_bytes(const CommandLine& line) {
  const auto gigabytes = line.get<double>("max-shard-size");
  if (!(gigabytes > 0 && gigabytes < 1e9)) {
    throw Error(ErrorKind::usage, fmt::format("--max-shard-size {}: expected a positive number", gigabytes));
  }
  return static_cast<std::int64_t>(gigabytes * 1e9);
}

}  // namespace gptqd::jobs
