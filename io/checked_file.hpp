#pragma once
/// @file A file that counts only with the checksum beside it: shards, snapshots.
///
/// `NAME.h5` has the sidecar `NAME.json` with its length and XXH3-128. The file is written first, the sidecar last, so
/// a file without a valid sidecar counts as absent.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/large_memory.hpp"

namespace gptqd::io {

enum class FileStatus {
  missing,  ///< no file, or no valid sidecar beside it
  valid,    ///< the file is what the sidecar says
  damaged,  ///< the file differs from what the sidecar says
};

struct FileState {
  FileStatus status = FileStatus::missing;
  std::string reason{};  ///< why it is not valid; empty where it is
  std::int64_t bytes = 0;
  std::string xxh3_128{};  ///< of a valid file
};

struct Sidecar {
  std::string xxh3_128;
  std::int64_t bytes = 0;
  nlohmann::json run;  ///< what the writer adds: in no checksum
};

class CheckedFile {
 public:
  explicit CheckedFile(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path sidecar() const { return std::filesystem::path(path_).replace_extension(".json"); }

  /// Writes file and sidecar, and their folder where it is missing; an earlier file is invalid from the first moment
  /// on.
  /// @throws Error (io)
  void write(std::span<const std::byte> image, const nlohmann::json& run) const;
  /// Compares the whole file with its sidecar; with `whole` false its size alone, which is quick and misses flipped
  /// bits.
  FileState state(bool whole) const;
  /// The sidecar where there is a valid one.
  std::optional<Sidecar> find_sidecar() const;
  /// The file, once its checksum has held, and what its writer added.
  /// @throws Error (input) when it is missing, damaged, or larger than `max_bytes`
  std::pair<LargeMemory, nlohmann::json> read(std::int64_t max_bytes) const;

 private:
  std::filesystem::path path_;
};

/// What writers add to a sidecar is in no checksum: `run[key]` where it is an object, an empty one otherwise.
nlohmann::json object_of_run(const nlohmann::json& run, const std::string& key);

/// Removes a file where there is one. @throws Error (io)
void remove_file(const std::filesystem::path& path);

}  // namespace gptqd::io
