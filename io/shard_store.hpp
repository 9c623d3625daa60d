#pragma once
/// @file The results of a run on disk: one HDF5 file per decoder block, complete or absent.
///
/// `shards/block_00012.h5` has a group per linear (datasets qweight, scales, zeros, g_idx) and beside it the sidecar
/// `block_00012.json` with the checksum of the whole file. The file is written first, the sidecar last, so a shard
/// without a valid sidecar counts as absent. libhdf5 reads only what the checksum vouches for: damaged files crash it.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/checked_file.hpp"
#include "io/packed_linear.hpp"

namespace gptqd::io {

/// One quantized decoder block.
struct BlockShard {
  std::int64_t block = 0;
  std::string fingerprint;  ///< of the run that made it
  nlohmann::json spec;      ///< the settings it was made with
  std::vector<PackedLinear> linears;
  nlohmann::json run;  ///< seconds, host, ...: in the sidecar alone, never in the HDF5 file
};

/// The bytes of a shard's HDF5 file: they depend on the content alone (not on `run`, time or place). Thread-safe.
/// @throws Error (internal) when a linear is not valid or two have one name
LargeMemory to_image(const BlockShard& shard);
/// The inverse; `name` opens messages. Every attribute's and dataset's type and shape is checked. Thread-safe.
/// @pre the image is undamaged: a checksum has been compared
/// @throws Error (input)
BlockShard from_image(std::span<const std::byte> image, const std::string& name);

/// A shard in memory whose checksum held. Its linears' arrays come one linear at a time. Thread-safe.
class ShardFile {
 public:
  ShardFile(ShardFile&&) noexcept;
  ShardFile& operator=(ShardFile&&) noexcept;
  ~ShardFile();

  /// All but the linears' arrays, which are empty.
  const BlockShard& account() const;
  /// account().linears[index] with its arrays. @throws Error (input) when they are not valid
  PackedLinear read(std::size_t index) const;

 private:
  friend class ShardStore;
  struct Content;
  explicit ShardFile(std::unique_ptr<Content> content);

  std::unique_ptr<Content> content_;
};

using ShardStatus = FileStatus;
using ShardState = FileState;

/// The shards of one work folder. Several threads may use one object, for different blocks.
class ShardStore {
 public:
  /// Creates nothing before the first write.
  explicit ShardStore(std::filesystem::path work_folder) : folder_(std::move(work_folder)) {}

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path shard_path(std::int64_t block) const;
  std::filesystem::path sidecar_path(std::int64_t block) const { return file(block).sidecar(); }

  /// Writes shard and sidecar; any earlier one of this block is invalid from the first moment on.
  /// @throws Error (internal, io)
  void write(const BlockShard& shard) const;
  /// Compares the whole file with its sidecar; with `whole` false its size alone, which is quick and misses flipped
  /// bits.
  ShardState state(std::int64_t block, bool whole = true) const;
  /// What the sidecar says of the run that made the block (seconds, host); null where there is no valid one.
  nlohmann::json run_of(std::int64_t block) const;
  /// Why a shard cannot be whole, as far as its sidecar and the file's length tell; empty where they tell nothing.
  std::string obstacle(std::int64_t block) const { return state(block, false).reason; }
  /// Compares the checksum, then finds what the shard holds. @throws Error (input) as read
  ShardFile open(std::int64_t block) const;
  /// Compares the checksum, then reads. @throws Error (input) when the shard is missing, damaged or another block's
  BlockShard read(std::int64_t block) const;
  /// Removes what a killed run left half-written. Call it where no other process writes to the folder.
  void remove_stale_temporaries() const;

  /// Writes manifest.json: the fingerprint and every shard with its checksum. Cheap: it is derived from the sidecars
  /// and the files' sizes, the content is not read.
  void write_manifest(std::int64_t num_blocks, const nlohmann::json& fingerprint) const;
  /// manifest.json, or nullopt where there is none. @throws Error (input) when it is damaged
  std::optional<nlohmann::json> read_manifest() const;

 private:
  CheckedFile file(std::int64_t block) const { return CheckedFile(shard_path(block)); }

  std::filesystem::path folder_;
};

}  // namespace gptqd::io
