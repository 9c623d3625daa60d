#pragma once
/// @file The folder in which a run keeps what it has done: run.json and shards/.
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/shard_store.hpp"

namespace gptqd::pipeline {

/// What run.json says: the fingerprint, and facts of no influence (where the source lay).
struct RunRecord {
  nlohmann::json fingerprint;
  nlohmann::json facts;
};

/// @throws Error (input) when there is none or it is damaged
RunRecord read_run_record(const std::filesystem::path& work);

/// Puts a record in the place of the one that is there. @throws Error (io)
void write_run_record(const std::filesystem::path& work, const RunRecord& record);

/// Opens a work folder for a run, or makes it. For one process at a time.
///
/// Returns the record of the run that the folder belongs to: `wanted`, or with `allow_mixed` what an earlier run wrote
/// that differs in its environment alone (tool version, backend, BLAS).
/// @throws Error (input) naming the differing fields; (usage) when the folder holds something else; (io)
RunRecord open_work_folder(const std::filesystem::path& work, const RunRecord& wanted, bool allow_mixed,
                           const std::function<void(const std::string&)>& note);

/// The lock that a run holds on its work folder.
std::filesystem::path lock_path(const std::filesystem::path& work);

/// Removes what a run has left in its work folder: snapshots, shards, reports. The record stays until another replaces
/// it, so that what a kill leaves is a work folder still; other files stay anyway. @throws Error (io)
void discard_work(const std::filesystem::path& work);

/// What a work folder holds, and how long its runs took.
struct WorkState {
  std::vector<io::ShardState> blocks;
  /// Means over the blocks whose sidecars know it: seconds to compute one, and of these the forward pass, which is what
  /// a replay takes.
  std::optional<double> compute_seconds = std::nullopt;
  std::optional<double> replay_seconds = std::nullopt;

  std::int64_t count(io::ShardStatus status) const;
  std::vector<std::int64_t> blocks_that_are(io::ShardStatus status) const;
  /// Blocks that a run goes through from `first` on: up to the last that is not valid.
  std::int64_t end_of_work() const;
  /// Valid blocks in [first, end_of_work()): those are replayed.
  std::int64_t to_replay(std::int64_t first) const;
  /// About how long a run from block `first` on takes, as far as sidecars tell.
  std::optional<double> estimated_seconds(std::int64_t first, bool with_replay) const;
};

/// Looks at every block. @param whole  compare checksums, not sizes alone
WorkState look_at_work(const io::ShardStore& store, std::int64_t blocks, bool whole);

/// "0 to 3, 5": ascending numbers in short.
std::string describe_numbers(const std::vector<std::int64_t>& numbers);

}  // namespace gptqd::pipeline
