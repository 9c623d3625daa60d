#include "pipeline/block_loader.hpp"

namespace gptqd::pipeline {

BlockLoader::BlockLoader(BlockLoaderContext context, BlockPackedSource packed, int bits,
                         std::function<int(std::int64_t)> owner)
    : context_(context), packed_(std::move(packed)), bits_(bits), owner_(std::move(owner)) {}

BlockLoader::~BlockLoader() {
  if (reading_.valid()) {
    reading_.wait();
  }
}

void BlockLoader::prefetch(std::int64_t block) {
  if (owner_(block) != context_.group.rank() || ahead_ == block) {
    return;
  }
  ahead_ = block;
  reading_ = std::async(std::launch::async, [this, block, packed = packed_ ? packed_(block) : PackedSource()] {
    return read_host_block(context_.tensors, context_.model.blocks[static_cast<std::size_t>(block)], packed,
                           [this] { context_.progress.tick(); });
  });
}

BlockWeights BlockLoader::load(std::int64_t block) {
  const int owner = owner_(block);
  const std::string what = fmt::format("weights of block {}", block);
  HostBlock host;
  if (owner == context_.group.rank()) {
    prefetch(block);
    ahead_.reset();
    host = with_context(fmt::format("reading block {}", block), [&] { return reading_.get(); });
  }
  const auto layout = HostBlock::parse_layout(context_.group.broadcast_string(host.layout(), owner, what));
  const std::int64_t bytes = layout.back().offset + layout.back().bytes();
  Buffer raw = context_.backend.allocate(bytes);
  if (owner == context_.group.rank()) {
    context_.backend.copy_to_device(context_.stream, raw.data(), host.data.data(), bytes);
  }
  context_.communicator.broadcast(context_.stream, raw.data(), bytes, owner, what).wait();
  BlockWeights weights(context_.backend, context_.stream, context_.model.blocks[static_cast<std::size_t>(block)],
                       layout, raw, context_.model.dtype, bits_);
  context_.stream.synchronize();  // `host` and `raw` go out of scope
  return weights;
}

}  // namespace gptqd::pipeline
