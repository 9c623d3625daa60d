#include "pipeline/activation_checkpoint.hpp"

#include <algorithm>

namespace gptqd::pipeline {

std::vector<int> ActivationCheckpoint::own_leaves() const {
  std::vector<int> leaves;
  const auto range = context_.plan.replica_leaves(context_.replica);
  for (int leaf = range.first; leaf < range.end(); ++leaf) {
    if (context_.plan.leaf_samples(leaf).count > 0) {
      leaves.push_back(leaf);
    }
  }
  return leaves;
}

io::Snapshot ActivationCheckpoint::describe(std::int64_t block, int leaf, DType dtype) const {
  const auto samples = context_.plan.leaf_samples(leaf);
  return {.block = block,
          .leaf = leaf,
          .fingerprint = context_.fingerprint,
          .first_sample = samples.first,
          .tokens = samples.count * context_.plan.seqlen,
          .hidden = context_.hidden,
          .dtype = dtype};
}

std::int64_t ActivationCheckpoint::first_byte(const io::Snapshot& snapshot) const {
  const auto own = context_.plan.replica_samples(context_.replica);
  return (snapshot.first_sample - own.first) * context_.plan.seqlen * snapshot.hidden * size_of(snapshot.dtype);
}

void ActivationCheckpoint::save(std::int64_t block, ConstAnyView<2> hidden) {
  finish();
  context_.group.barrier("the snapshot before");  // it is whole now
  if (context_.group.rank() == 0) {
    for (const auto generation : store_.generations()) {
      if (generation != block && generation != kept_) {
        store_.remove(generation);
      }
    }
  }
  if (hidden.bytes() == 0) {
    kept_ = block;
    return;  // more replicas than samples
  }
  if (!host_) {
    host_ = context_.backend.allocate_host(hidden.bytes());
  }
  context_.backend.copy_to_host(context_.stream, host_.data(), hidden.data, hidden.bytes());
  context_.stream.synchronize();
  kept_ = block;
  writing_ = std::async(std::launch::async, [this, block, dtype = hidden.dtype] {
    for (const int leaf : own_leaves()) {
      const auto snapshot = describe(block, leaf, dtype);
      store_.write(snapshot, {static_cast<const std::byte*>(host_.data()) + first_byte(snapshot),
                              static_cast<std::size_t>(snapshot.bytes())});
      context_.world.progress().tick();
    }
  });
}

void ActivationCheckpoint::load(std::int64_t block, AnyView<2> hidden) const {
  for (const int leaf : own_leaves()) {
    const auto snapshot = describe(block, leaf, hidden.dtype);
    std::vector<std::byte> data(static_cast<std::size_t>(snapshot.bytes()));
    {
      const auto step = context_.world.long_host_step("reading a snapshot");
      store_.read(snapshot, data);
    }
    context_.backend.copy_to_device(context_.stream, static_cast<std::byte*>(hidden.data) + first_byte(snapshot),
                                    data.data(), snapshot.bytes());
    context_.stream.synchronize();  // `data` goes out of scope
  }
}

void ActivationCheckpoint::finish() {
  if (writing_.valid()) {
    with_context("writing a snapshot of the hidden states", [&] { writing_.get(); });
  }
}

void discard_snapshots(const std::filesystem::path& work) {
  const io::SnapshotStore store(work);
  for (const auto generation : store.generations()) {
    store.remove(generation);
  }
}

std::optional<std::int64_t> choose_snapshot(comm::World& world, const io::SnapshotStore& store, const Plan& plan,
                                            const WorkState& work,
                                            const std::function<void(const std::string&)>& note) {
  std::vector<std::int64_t> leaves;
  for (int leaf = 0; leaf < plan.partition.leaves; ++leaf) {
    if (plan.leaf_samples(leaf).count > 0) {
      leaves.push_back(leaf);
    }
  }
  std::vector<std::int64_t> candidates;
  if (world.rank() == 0) {
    const auto end = work.end_of_work();
    const auto first_invalid = std::find_if(work.blocks.begin(), work.blocks.end(),
                                            [](const auto& state) { return state.status != io::ShardStatus::valid; }) -
                               work.blocks.begin();
    for (const auto block : store.generations()) {
      if (block < first_invalid && block + 1 < end && store.is_whole(block, leaves)) {
        candidates.push_back(block);
      }
    }
  }
  const auto count = world.group().broadcast_value(static_cast<std::int64_t>(candidates.size()), 0, "snapshots");
  candidates.resize(static_cast<std::size_t>(count));
  world.group().broadcast(std::as_writable_bytes(std::span(candidates)), 0, "snapshots");
  for (const auto block : candidates) {
    std::string offence;
    {
      const auto step = world.long_host_step("comparing a snapshot's checksums");
      for (auto leaf = static_cast<std::size_t>(world.rank()); leaf < leaves.size() && offence.empty();
           leaf += static_cast<std::size_t>(world.size())) {
        const auto file = store.file(block, leaves[leaf]);
        if (const auto state = file.state(true); state.status != io::FileStatus::valid) {
          offence = fmt::format("{}: {}", file.path().string(), state.reason);
        }
      }
    }
    const auto offences = world.group().all_gather_bytes(std::as_bytes(std::span(offence)), "damage of snapshots");
    const auto found = std::find_if(offences.begin(), offences.end(), [](const auto& text) { return !text.empty(); });
    if (found == offences.end()) {
      return block;
    }
    if (world.rank() == 0) {
      note(fmt::format("the snapshot behind block {} is damaged and is passed over: {}", block,
                       std::string(reinterpret_cast<const char*>(found->data()), found->size())));
    }
  }
  return std::nullopt;
}

}  // namespace gptqd::pipeline
