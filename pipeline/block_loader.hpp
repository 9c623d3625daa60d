#pragma once
/// @file Brings blocks to the ranks of a stage: the owner reads ahead in the background, up to its device, and
/// broadcasts, beside other work where it can.
#include <future>
#include <optional>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/group.hpp"
#include "pipeline/block_weights.hpp"
#include "pipeline/plan.hpp"

namespace gptqd::pipeline {

/// What the loader needs to know of the run; all references outlive it.
struct BlockLoaderContext {
  Backend& backend;
  Stream& stream;
  comm::Communicator& communicator;  ///< of the stage's replicas
  comm::Group& group;                ///< the same ranks
  Progress& progress;
  const ModelSpec& model;
  const io::CheckpointReader& tensors;
};

/// Gives a block's linears packed where it has them.
using BlockPackedSource = std::function<PackedSource(std::int64_t block)>;

class BlockLoader {
 public:
  /// @param packed  what is packed in which block (finished shards, an artifact); called at the block's owner
  /// @param owner   replica that reads a block
  BlockLoader(BlockLoaderContext context, BlockPackedSource packed, std::function<int(std::int64_t block)> owner);
  ~BlockLoader();

  /// Starts reading a block in the background, at its owner. Others do nothing.
  void prefetch(std::int64_t block);
  /// Begins to bring a block to all ranks, if its owner has read it by now: work enqueued afterwards goes on beside it.
  /// Collective.
  void start(std::int64_t block);
  /// The block's weights on every rank of the stage. Collective. Blocks may come in any order.
  /// @throws Error on every rank when the owner could not read it
  BlockWeights load(std::int64_t block);
  /// Waits for what is on its way, and drops it: no further block is asked for. Collective.
  void give_up();

 private:
  BlockLoaderContext context_;
  BlockPackedSource packed_;
  std::function<int(std::int64_t)> owner_;
  /// A block on its owner's device.
  struct Ahead {
    std::string layout;
    Buffer raw;
  };
  Ahead read(std::int64_t block, const PackedSource& packed);
  /// A block on its way to all ranks.
  struct Coming {
    std::int64_t block = 0;
    std::vector<BlockTensor> layout;
    Buffer raw;
    comm::Pending pending;
  };
  /// What this rank has read of a block that it owns; waits for it.
  Ahead take(std::int64_t block);
  void bring(std::int64_t block, Ahead own, const std::string& layout);

  std::unique_ptr<Stream> copy_stream_;  ///< of the thread that reads ahead
  std::optional<std::int64_t> ahead_;
  std::future<Ahead> reading_;
  std::optional<Coming> coming_;
};

}  // namespace gptqd::pipeline
