#pragma once
/// @file Snapshots of a stage's hidden states, written beside the work, and how a run begins from one.
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "comm/world.hpp"
#include "io/snapshot_store.hpp"
#include "kernels/backend.hpp"
#include "pipeline/plan.hpp"
#include "pipeline/work_folder.hpp"

namespace gptqd::pipeline {

/// What the snapshots of a stage need; all references outlive the object.
struct ActivationContext {
  comm::World& world;
  Backend& backend;
  Stream& stream;
  comm::Group& group;  ///< the stage's replicas
  const Plan& plan;
  int replica = 0;
  std::string fingerprint;
  std::int64_t hidden = 0;  ///< width
};

class ActivationCheckpoint {
 public:
  /// @param loaded  block of the generation that the run began from: kept until there is a newer one
  ActivationCheckpoint(ActivationContext context, io::SnapshotStore store, std::optional<std::int64_t> loaded)
      : context_(std::move(context)), store_(std::move(store)), kept_(loaded) {}

  /// Copies the hidden states behind `block` to the host; a thread writes them, a file a leaf. Waits for the generation
  /// before, which is kept; older ones are removed: two at most are on disk. Collective over the replicas.
  void save(std::int64_t block, ConstAnyView<2> hidden);
  /// Fills this replica's hidden states. @throws Error (input)
  void load(std::int64_t block, AnyView<2> hidden) const;
  /// Waits for what is being written.
  void finish();

 private:
  /// The leaves of this replica that have samples.
  std::vector<int> own_leaves() const;
  io::Snapshot describe(std::int64_t block, int leaf, DType dtype) const;
  std::int64_t first_byte(const io::Snapshot& snapshot) const;

  ActivationContext context_;
  io::SnapshotStore store_;
  std::optional<std::int64_t> kept_;
  Buffer host_;  ///< what the thread writes
  std::future<void> writing_;
};

/// The latest snapshot that a run can begin from: all blocks up to it are valid, all its files undamaged. The ranks
/// share the checksums. Collective over the world.
/// @param work  at rank 0: what the work folder holds
/// @return the block behind which the snapshot was taken
std::optional<std::int64_t> choose_snapshot(comm::World& world, const io::SnapshotStore& store, const Plan& plan,
                                            const WorkState& work, const std::function<void(const std::string&)>& note);

/// Removes all snapshots of a work folder.
void discard_snapshots(const std::filesystem::path& work);

}  // namespace gptqd::pipeline
