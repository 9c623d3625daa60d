#include "comm/world.hpp"
#include "jobs/artifact_options.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "pipeline/merge.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: gptq-dist convert ARTIFACT --to FORMAT --out DIR [options]

Writes a quantized model (gptq, gptq_v2 or compressed-tensors, ours or another tool's) in another format, without loss:
what a format cannot hold exactly is refused with the reason. Needs neither MPI nor a GPU.
)";

}  // namespace

int convert_command(const Arguments& arguments) {
  CommandLine line("convert", usage, "artifact");
  po::options_description options("Convert", 100, 50);
  options.add_options()("artifact", po::value<std::string>()->value_name("DIR"), "folder of the quantized model")(
      "to", po::value<std::string>()->value_name("FORMAT"),
      "gptq, gptq_v2, compressed-tensors, gguf (llama.cpp), safetensors-float (dequantized)")(
      "out", po::value<std::string>()->value_name("DIR"), "where the result goes")(
      "max-shard-size", po::value<double>()->default_value(4)->value_name("GB"), "largest file of weights");
  line.add(options);
  if (!line.parse(arguments)) {
    return 0;
  }
  for (const char* option : {"artifact", "to", "out"}) {
    if (!line.has(option)) {
      throw Error(ErrorKind::usage, fmt::format("--{} is missing; see gptq-dist convert --help", option));
    }
  }
  if (comm::launcher_rank() != 0) {
    return 0;  // started under mpirun: one process is enough
  }
  const std::filesystem::path out = line.get<std::string>("out");
  const auto summary = pipeline::convert_artifact(line.get<std::string>("artifact"),
                                                  {.out = out,
                                                   .format = io::artifact_format_from_name(line.get<std::string>("to")),
                                                   .max_shard_bytes = max_shard_bytes(line)},
                                                  console_observer());
  fmt::print("{} in {} files\nartifact: {}\n", human_bytes(summary.bytes), summary.files.size(),
             std::filesystem::absolute(out).string());
  return 0;
}

}  // namespace gptqd::jobs
