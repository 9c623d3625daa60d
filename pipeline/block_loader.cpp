#include "pipeline/block_loader.hpp"

#include <chrono>

namespace gptqd::pipeline {

namespace {

std::string name_of(std::int64_t block) { return fmt::format("weights of block {}", block); }

}  // namespace

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
  const auto image = block_image(context_.tensors, context_.model.blocks[static_cast<std::size_t>(block)], packed);
  Ahead ahead{.layout = image.layout(), .raw = context_.backend.allocate(image.bytes)};
  fill_buffer(context_.backend, *copy_stream_, ahead.raw, image.pieces, [this] { context_.progress.tick(); });
  return ahead;
}

BlockLoader::Ahead BlockLoader::take(std::int64_t block) {
  prefetch(block);
  ahead_.reset();
  return with_context(fmt::format("reading block {}", block), [&] { return reading_.get(); });
}

void BlockLoader::start(std::int64_t block) {
  const int owner = owner_(block);
  const bool is_owner = owner == context_.group.rank();
  Ahead own;
  if (is_owner && ahead_ == block && reading_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    own = take(block);
  }
  const auto layout = context_.group.broadcast_string(own.layout, owner, name_of(block));
  if (!layout.empty()) {
    bring(block, std::move(own), layout);
  }
}

void BlockLoader::bring(std::int64_t block, Ahead own, const std::string& layout) {
  Coming coming{.block = block, .layout = BlockImage::parse_layout(layout), .raw = {}, .pending = {}};
  const std::int64_t bytes = coming.layout.back().offset + coming.layout.back().bytes();
  coming.raw = own.raw ? std::move(own.raw) : context_.backend.allocate(bytes);
  coming.pending =
      context_.communicator.broadcast(context_.stream, coming.raw.data(), bytes, owner_(block), name_of(block));
  coming_ = std::move(coming);
}

void BlockLoader::give_up() {
  if (coming_) {
    coming_->pending.wait();
    coming_.reset();
  }
}

BlockWeights BlockLoader::load(std::int64_t block) {
  if (!coming_ || coming_->block != block) {
    const int owner = owner_(block);
    Ahead own = owner == context_.group.rank() ? take(block) : Ahead();
    const auto layout = context_.group.broadcast_string(own.layout, owner, name_of(block));
    bring(block, std::move(own), layout);
  }
  Coming coming = std::move(*coming_);
  coming_.reset();
  coming.pending.wait();
  return {context_.backend, context_.stream, context_.model.blocks[static_cast<std::size_t>(block)],
          coming.layout,    coming.raw,      context_.model.dtype};
}

}  // namespace gptqd::pipeline
