#include "comm/world.hpp"
#include "io/model_lookup.hpp"
#include "jobs/artifact_options.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "pipeline/merge.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: gptq-dist merge WORK --out DIR [options]

Merges the finished shards of a work folder into one checkpoint, verifying every checksum. Needs neither MPI nor a GPU.
)";

}  // namespace

int merge_command(const Arguments& arguments) {
  CommandLine line("merge", usage, "work");
  po::options_description options("Merge", 100, 50);
  options.add_options()("work", po::value<std::string>()->value_name("DIR"), "work folder of a finished run")(
      "out", po::value<std::string>()->value_name("DIR"), "where the artifact goes")(
      "model", po::value<std::string>()->value_name("NAME|DIR"),
      "source of the float weights; default: where the run found it");
  line.add(options);
  line.add(artifact_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  for (const char* option : {"work", "out"}) {
    if (!line.has(option)) {
      throw Error(ErrorKind::usage, fmt::format("--{} is missing; see gptq-dist merge --help", option));
    }
  }
  if (comm::launcher_rank() != 0) {
    return 0;  // started under mpirun: one process is enough
  }
  const auto summary = pipeline::merge_shards(
      line.get<std::string>("work"),
      line.has("model") ? io::find_model(line.get<std::string>("model")) : std::filesystem::path(),
      {.out = line.get<std::string>("out"), .format = artifact_format(line), .max_shard_bytes = max_shard_bytes(line)},
      console_observer());
  if (!summary.already_complete) {
    fmt::print("{} blocks, {} -> {}, {}\n", summary.blocks_found, human_bytes(summary.source_bytes),
               human_bytes(summary.artifact_bytes), human_seconds(summary.seconds));
  }
  fmt::print("artifact: {}\n", std::filesystem::absolute(summary.out).string());
  return 0;
}

}  // namespace gptqd::jobs
