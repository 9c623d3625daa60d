#pragma once
/// @file The folder in which a run keeps what it has done: run.json and shards/.
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "io/shard_store.hpp"

namespace gptqd::pipeline {

/// What run.json says: the fingerprint, and facts of no influence (where the source lay).
struct RunRecord {
  nlohmann::json fingerprint;
  nlohmann::json facts;
};

/// @throws Error (input) when there is none or it is damaged
RunRecord read_run_record(const std::filesystem::path& work);

/// Opens a work folder for a run, or makes it. For one process at a time.
///
/// Returns the record of the run that the folder belongs to: `wanted`, or with `allow_mixed` what an earlier run wrote
/// that differs in its environment alone (tool version, backend, BLAS).
/// @throws Error (input) naming the differing fields; (usage) when the folder holds something else; (io)
RunRecord open_work_folder(const std::filesystem::path& work, const RunRecord& wanted, bool allow_mixed,
                           const std::function<void(const std::string&)>& note);

}  // namespace gptqd::pipeline
