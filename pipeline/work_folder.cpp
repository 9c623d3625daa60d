#include "pipeline/work_folder.hpp"

#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "pipeline/fingerprint.hpp"

namespace gptqd::pipeline {

RunRecord read_run_record(const std::filesystem::path& work) {
  const auto path = fingerprint_path(work);
  const auto json = io::read_json(path);
  return {.fingerprint = io::get<nlohmann::json>(json, "fingerprint", path.string()),
          .facts = io::get<nlohmann::json>(json, "facts", path.string())};
}

void write_run_record(const std::filesystem::path& work, const RunRecord& record) {
  io::write_file_atomically(
      fingerprint_path(work),
      nlohmann::json{{"fingerprint", record.fingerprint}, {"facts", record.facts}}.dump(1) + "\n");
}

RunRecord open_work_folder(const std::filesystem::path& work, const RunRecord& wanted, bool allow_mixed,
                           const std::function<void(const std::string&)>& note) {
  std::error_code error;
  std::filesystem::create_directories(work, error);
  if (error) {
    throw Error(
        ErrorKind::io,
        fmt::format("cannot make the work folder {}: {}; choose another --work (or --out, beside which it lies)",
                    work.string(), error.message()));
  }
  const auto path = fingerprint_path(work);
  if (!std::filesystem::exists(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(work)) {
      const auto name = entry.path().filename().string();
      if (name != "shards" && name != "activations" && !name.starts_with("run.json.") && !name.starts_with("lock")) {
        throw Error(
            ErrorKind::usage,
            fmt::format(
                "the work folder {} has no run.json but holds {}; it belongs to something else, choose another --work",
                work.string(), name));
      }
    }
    write_run_record(work, wanted);
    return wanted;
  }
  RunRecord found = read_run_record(work);
  const auto differences = fingerprint_differences(found.fingerprint, wanted.fingerprint);
  const bool only_environment = only_environment_differs(differences);
  if (!differences.empty() && !(allow_mixed && only_environment)) {
    throw Error(
        ErrorKind::input,
        fmt::format(
            "the work folder {} belongs to another run ({}); use the same options, another --work, or delete it{}",
            work.string(), fmt::join(differences, "; "), only_environment ? ", or continue with --allow-mixed" : ""));
  }
  if (!differences.empty()) {
    note(fmt::format(
        "continuing a run made elsewhere, as --allow-mixed says ({}): its bytes will be those of no single environment",
        fmt::join(differences, "; ")));
  }
  return found;
}

std::filesystem::path lock_path(const std::filesystem::path& work) { return work / "lock"; }

void discard_work(const std::filesystem::path& work) {
  for (const char* name : {"activations", "shards", "manifest.json", "report.json"}) {
    std::error_code error;
    std::filesystem::remove_all(work / name, error);
    if (error) {
      throw Error(ErrorKind::io, fmt::format("cannot remove {}: {}; check the folder's permissions",
                                             (work / name).string(), error.message()));
    }
  }
}

std::int64_t WorkState::count(io::ShardStatus status) const {
  return std::count_if(blocks.begin(), blocks.end(), [&](const auto& block) { return block.status == status; });
}

std::vector<std::int64_t> WorkState::blocks_that_are(io::ShardStatus status) const {
  std::vector<std::int64_t> numbers;
  for (std::int64_t block = 0; block < std::ssize(blocks); ++block) {
    if (blocks[static_cast<std::size_t>(block)].status == status) {
      numbers.push_back(block);
    }
  }
  return numbers;
}

std::int64_t WorkState::end_of_work() const {
  const auto last = std::find_if(blocks.rbegin(), blocks.rend(),
                                 [](const auto& block) { return block.status != io::ShardStatus::valid; });
  return std::distance(last, blocks.rend());
}

std::int64_t WorkState::to_replay(std::int64_t first) const {
  const auto from = blocks.begin() + std::min(first, end_of_work());
  return std::count_if(from, blocks.begin() + end_of_work(),
                       [](const auto& block) { return block.status == io::ShardStatus::valid; });
}

std::optional<double> WorkState::estimated_seconds(std::int64_t first, bool with_replay) const {
  if (!compute_seconds || (with_replay && !replay_seconds)) {
    return std::nullopt;
  }
  const auto missing = std::ssize(blocks) - count(io::ShardStatus::valid);
  return *compute_seconds * static_cast<double>(missing) +
         (with_replay ? *replay_seconds * static_cast<double>(to_replay(first)) : 0.0);
}

WorkState look_at_work(const io::ShardStore& store, std::int64_t blocks, bool whole) {
  WorkState work;
  double compute = 0;
  double replay = 0;
  std::int64_t known = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    work.blocks.push_back(store.state(block, whole));
    if (work.blocks.back().status != io::ShardStatus::valid) {
      continue;
    }
    const auto seconds = io::object_of_run(store.run_of(block), "seconds");
    if (seconds.contains("total") && seconds.at("total").is_number() && seconds.contains("forward") &&
        seconds.at("forward").is_number()) {
      compute += seconds.at("total").get<double>();
      replay += seconds.at("forward").get<double>();
      ++known;
    }
  }
  if (known > 0) {
    work.compute_seconds = compute / static_cast<double>(known);
    work.replay_seconds = replay / static_cast<double>(known);
  }
  return work;
}

std::string describe_numbers(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) {
      ++end;
    }
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (end - i > 1) {
      text += fmt::format(" to {}", numbers[end - 1]);
    }
    i = end;
  }
  return text;
}

}  // namespace gptqd::pipeline
