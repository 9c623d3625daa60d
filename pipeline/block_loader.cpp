#include "pipeline/block_loader.hpp"

namespace gptqd::pipeline {

BlockLoader::BlockLoader(BlockLoaderContext context, BlockPackedSource packed, std::function<int(std::int64_t)> owner)
    : context_(context),
      packed_(std::move(packed)),
      owner_(std::move(owner)),
      copy_stream_(context.backend.create_stream()) {}

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
    return read(block, packed);
  });
}

BlockLoader::Ahead BlockLoader::read(std::int64_t block, const PackedSource& packed) {
  const HostBlock host = read_host_block(context_.tensors, context_.model.blocks[static_cast<std::size_t>(block)],
                                         packed, [this] { context_.progress.tick(); });
  Ahead ahead{.layout = host.layout(), .raw = context_.backend.allocate(std::ssize(host.data))};
  context_.backend.copy_to_device(*copy_stream_, ahead.raw.data(), host.data.data(), ahead.raw.bytes());
  copy_stream_->synchronize();  // `host` goes out of scope
  return ahead;
}

BlockWeights BlockLoader::load(std::int64_t block) {
  const int owner = owner_(block);
  const std::string what = fmt::format("weights of block {}", block);
  Ahead own;
  if (owner == context_.group.rank()) {
    prefetch(block);
    ahead_.reset();
    own = with_context(fmt::format("reading block {}", block), [&] { return reading_.get(); });
  }
  const auto layout = HostBlock::parse_layout(context_.group.broadcast_string(own.layout, owner, what));
  const std::int64_t bytes = layout.back().offset + layout.back().bytes();
  const Buffer raw = own.raw ? std::move(own.raw) : context_.backend.allocate(bytes);
  context_.communicator.broadcast(context_.stream, raw.data(), bytes, owner, what).wait();
  BlockWeights weights(context_.backend, context_.stream, context_.model.blocks[static_cast<std::size_t>(block)],
                       layout, raw, context_.model.dtype);
  context_.stream.synchronize();  // `raw` goes out of scope
  return weights;
}

}  // namespace gptqd::pipeline
