#include "io/artifact/pieces.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "io/ordered_pipeline.hpp"

namespace gptqd::io {

namespace {

// Below this the allocator gives memory out again that it got back, without new pages from the system.
constexpr std::int64_t piece_bytes = std::int64_t{8} << 20;

}  // namespace

void append_passing(std::vector<Piece>& pieces, std::size_t tensor, const CheckpointReader& source,
                    const TensorInfo& info) {
  for (std::int64_t offset = 0; offset < info.bytes; offset += piece_bytes) {
    pieces.push_back([tensor, &source, &info, offset] {
      std::vector<std::byte> bytes(static_cast<std::size_t>(std::min(piece_bytes, info.bytes - offset)));
      source.read_range(info, offset, bytes);
      return std::vector{TensorBytes{.tensor = tensor, .data = OwnedBytes::of(std::move(bytes))}};
    });
  }
}

void stream_pieces(const std::vector<Piece>& pieces, int threads,
                   const std::function<void(const TensorBytes&)>& consume) {
  ordered_pipeline(
      std::ssize(pieces), threads, 2 * threads, [&](std::int64_t i) { return pieces[static_cast<std::size_t>(i)](); },
      [&](const std::vector<TensorBytes>& made) { std::for_each(made.begin(), made.end(), consume); });
}

PackedLinear read_declared(const ArtifactContent& content, std::int64_t block, std::int64_t layer) {
  const auto& declared = content.blocks[static_cast<std::size_t>(block)][static_cast<std::size_t>(layer)];
  auto linear = content.read_layer(block, layer);
  const auto fail = [&](const std::string& offence) { throw Error(ErrorKind::input, offence); };
  if (linear.name != declared.module) {
    fail(fmt::format("got the layer {}, expected {}", linear.name, declared.module));
  }
  if (linear.rows != declared.rows || linear.cols != declared.cols) {
    fail(fmt::format("{}: quantized as [{}, {}], but the source's weight is [{}, {}]", linear.name, linear.rows,
                     linear.cols, declared.rows, declared.cols));
  }
  validate(linear);
  const LayerSettings settings{.bits = linear.bits,
                               .group_size = linear.group_size,
                               .sym = linear.sym,
                               .reordered = !is_trivial_g_idx(linear.g_idx, linear.group_size)};
  LayerSettings expected = declared.settings;
  expected.reordered = expected.reordered && settings.reordered;  // an order may happen to be the natural one
  if (settings != expected) {
    fail(fmt::format("{}: has {}, expected {}", linear.name, to_text(settings), to_text(declared.settings)));
  }
  return linear;
}

}  // namespace gptqd::io
