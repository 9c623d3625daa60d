#include "pipeline/block_loader.hpp"

namespace gptqd::pipeline {

BlockLoader::BlockLoader(BlockLoaderContext context, BlockPackedSource packed, int bits,
                         std::function<int(std::int64_t)> owner)
    : context_(context),
      packed_(std::move(packed)),
      bits_(bits),
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
  const auto image = block_image(context_.tensors, context_.model.blocks[static_cast<std::size_t>(block)], packed);
  Ahead ahead{.layout = image.layout(), .raw = context_.backend.allocate(image.bytes)};
  fill_buffer(context_.backend, *copy_stream_, ahead.raw, image.pieces, [this] { context_.progress.tick(); });
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
  const auto layout = BlockImage::parse_layout(context_.group.broadcast_string(own.layout, owner, what));
  const std::int64_t bytes = layout.back().offset + layout.back().bytes();
  const Buffer raw = own.raw ? std::move(own.raw) : context_.backend.allocate(bytes);
  context_.communicator.broadcast(context_.stream, raw.data(), bytes, owner, what).wait();
  BlockWeights weights(context_.backend, context_.stream, context_.model.blocks[static_cast<std::size_t>(block)],
                       layout, raw, context_.model.dtype, bits_);
  context_.stream.synchronize();  // `raw` goes out of scope
  return weights;
}

}  // namespace gptqd::pipeline
