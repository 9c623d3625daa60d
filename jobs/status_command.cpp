#include <algorithm>

#include "io/folder_lock.hpp"
#include "io/json_file.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "kernels/base/launcher_rank.hpp"
#include "pipeline/fingerprint.hpp"
#include "pipeline/work_folder.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: gptq-dist status WORK [--json] [--quick]

Says which blocks of a run are finished, missing or damaged, how long the rest takes, and whether a run is alive on the
work folder. Changes nothing, needs neither MPI nor a GPU, and may be called while the run goes on.
)";

/// A run that was started before the number of blocks was written down: its shards tell how many there are at least.
std::int64_t number_of_blocks(const std::filesystem::path& work, const pipeline::RunRecord& record) {
  constexpr std::int64_t most = 100'000;
  const auto told = io::get_or<std::int64_t>(record.facts, "blocks", 0, "run.json");
  std::int64_t found = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(work / "shards", error)) {
    long long block = 0;
    if (std::sscanf(entry.path().filename().c_str(), "block_%lld", &block) == 1) {
      found = std::max<std::int64_t>(found, block + 1);
    }
  }
  const auto blocks = told > 0 ? told : found;
  if (blocks > most) {
    throw Error(ErrorKind::input, fmt::format("{}: {} blocks, expected at most {}", work.string(), blocks, most));
  }
  return blocks;
}

struct Status {
  std::string fingerprint;
  std::string model;
  pipeline::WorkState work;
  io::LockStatus lock;
  std::optional<double> eta_seconds;

  bool is_running() const { return lock.state == io::LockState::held; }
};

Status look(const std::filesystem::path& folder, bool whole) {
  const auto record = pipeline::read_run_record(folder);
  Status status{.fingerprint = pipeline::fingerprint_hash(record.fingerprint),
                .model = io::get_or<std::string>(record.facts, "model", "", "run.json"),
                .work = pipeline::look_at_work(io::ShardStore(folder), number_of_blocks(folder, record), whole),
                .lock = io::look_at_lock(pipeline::lock_path(folder)),
                .eta_seconds = {}};
  // A run that is alive has replayed what it needs.
  status.eta_seconds = status.work.estimated_seconds(0, !status.is_running());
  return status;
}

nlohmann::json to_json(const Status& status, const std::filesystem::path& folder) {
  using io::ShardStatus;
  nlohmann::json damaged = nlohmann::json::array();
  for (const auto block : status.work.blocks_that_are(ShardStatus::damaged)) {
    damaged.push_back({{"block", block}, {"reason", status.work.blocks[static_cast<std::size_t>(block)].reason}});
  }
  nlohmann::json run = {{"alive", status.is_running()}};
  if (const auto& holder = status.lock.holder) {
    run.update(
        {{"host", holder->host}, {"pid", holder->pid}, {"since", holder->since}, {"activity", holder->activity}});
  }
  const auto optional = [](const std::optional<double>& number) {
    return number ? nlohmann::json(*number) : nlohmann::json();
  };
  return {{"work", std::filesystem::absolute(folder).string()},
          {"model", status.model},
          {"fingerprint", status.fingerprint},
          {"blocks",
           {{"total", status.work.blocks.size()},
            {"done", status.work.count(ShardStatus::valid)},
            {"missing", status.work.count(ShardStatus::missing)},
            {"corrupt", status.work.count(ShardStatus::damaged)},
            {"missing_blocks", status.work.blocks_that_are(ShardStatus::missing)},
            {"corrupt_blocks", std::move(damaged)}}},
          {"seconds_per_block", optional(status.work.compute_seconds)},
          {"seconds_per_replay", optional(status.work.replay_seconds)},
          {"eta_seconds", optional(status.eta_seconds)},
          {"run", std::move(run)}};
}

void print(const Status& status) {
  using io::ShardStatus;
  const auto& work = status.work;
  const auto total = std::ssize(work.blocks);
  const auto line = [&](const char* name, ShardStatus which) {
    const auto numbers = work.blocks_that_are(which);
    fmt::print("{:<12} {} of {}{}\n", name, numbers.size(), total,
               numbers.empty() ? "" : fmt::format(" ({})", pipeline::describe_numbers(numbers)));
  };
  fmt::print("model        {}\nfingerprint  {}\n", status.model, status.fingerprint);
  line("done", ShardStatus::valid);
  line("missing", ShardStatus::missing);
  line("corrupt", ShardStatus::damaged);
  for (const auto block : work.blocks_that_are(ShardStatus::damaged)) {
    fmt::print("  block {}: {}; it will be made again\n", block, work.blocks[static_cast<std::size_t>(block)].reason);
  }
  if (work.count(ShardStatus::valid) == total) {
    fmt::print("left         nothing but the merge: gptq-dist merge, or the same command again\n");
  } else {
    fmt::print("left         {}\n", status.eta_seconds ? fmt::format("about {}, if blocks take as long as before",
                                                                     human_seconds(*status.eta_seconds))
                                                       : "not known before a block is finished");
  }
  const auto holder = status.lock.holder ? ": " + status.lock.holder->describe() : std::string();
  fmt::print("run          {}\n", status.is_running()                         ? "alive" + holder
                                  : status.lock.state == io::LockState::stale ? "gone without an orderly end" + holder
                                                                              : "none");
}

}  // namespace

int status_command(const Arguments& arguments) {
  CommandLine line("status", usage, "work");
  po::options_description options("Status", 100, 50);
  options.add_options()("work", po::value<std::string>()->value_name("DIR"), "work folder of a run")(
      "json", po::bool_switch(), "print one JSON object")("quick", po::bool_switch(),
                                                          "compare sizes, not checksums: flipped bits go unnoticed");
  line.add(options);
  if (!line.parse(arguments)) {
    return 0;
  }
  if (!line.has("work")) {
    throw Error(ErrorKind::usage, "the work folder is missing; see gptq-dist status --help");
  }
  if (launcher_rank() != 0) {
    return 0;  // started under mpirun: one process is enough
  }
  const std::filesystem::path folder = line.get<std::string>("work");
  const auto status = look(folder, !line.flag("quick"));
  if (line.flag("json")) {
    fmt::print("{}\n", to_json(status, folder).dump(1));
  } else {
    print(status);
  }
  return 0;
}

}  // namespace gptqd::jobs
