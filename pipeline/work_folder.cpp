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
      if (name != "run.json.tmp" && name != "shards") {
        throw Error(
            ErrorKind::usage,
            fmt::format(
                "the work folder {} has no run.json but holds {}; it belongs to something else, choose another --work",
                work.string(), name));
      }
    }
    io::write_file_atomically(
        path, nlohmann::json{{"fingerprint", wanted.fingerprint}, {"facts", wanted.facts}}.dump(1) + "\n");
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

}  // namespace gptqd::pipeline
