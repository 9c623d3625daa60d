#pragma once
/// @file Snapshots of the hidden states between two blocks, so that a late restart need not replay from the start.
///
/// `WORK/activations/after_00012/leaf_003.h5` holds the hidden states of one leaf's samples behind block 12, beside it
/// a sidecar as shards have. A leaf is a fixed part of the samples whatever the number of ranks, so ranks write the
/// leaves that they hold, and another number of ranks reads the same files. A generation counts when all its leaves are
/// there.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/checked_file.hpp"
#include "kernels/base/dtype.hpp"

namespace gptqd::io {

/// Hidden states of consecutive samples behind a block: [samples * seqlen, hidden], row-major.
struct Snapshot {
  std::int64_t block = 0;
  std::int64_t leaf = 0;
  std::string fingerprint;  ///< of the run
  std::int64_t first_sample = 0;
  std::int64_t tokens = 0;
  std::int64_t hidden = 0;
  DType dtype = DType::f32;  ///< f32, f16 or bf16

  std::int64_t bytes() const { return tokens * hidden * size_of(dtype); }
  bool operator==(const Snapshot&) const = default;
};

/// The snapshots of one work folder. Several threads may use one object, for different leaves.
class SnapshotStore {
 public:
  explicit SnapshotStore(const std::filesystem::path& work_folder) : folder_(work_folder / "activations") {}

  CheckedFile file(std::int64_t block, std::int64_t leaf) const;
  /// Blocks behind which there are snapshots, whole or not, the latest first.
  std::vector<std::int64_t> generations() const;
  /// Whether all of these leaves have files as long as their sidecars say.
  bool is_whole(std::int64_t block, const std::vector<std::int64_t>& leaves) const;

  /// @pre data.size() == snapshot.bytes()
  void write(const Snapshot& snapshot, std::span<const std::byte> data) const;
  /// Fills `data`.
  /// @throws Error (input) when the file is missing, damaged, or differs from `expected`
  void read(const Snapshot& expected, std::span<std::byte> data) const;
  /// Removes a generation, whole or not.
  void remove(std::int64_t block) const;

 private:
  std::filesystem::path generation_path(std::int64_t block) const;

  std::filesystem::path folder_;
};

}  // namespace gptqd::io
