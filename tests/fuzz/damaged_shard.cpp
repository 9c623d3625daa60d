#include "tests/fuzz/damaged_shard.hpp"

namespace gptqd::fuzz {

namespace {

io::PackedLinear linear(const char* name, int bits, std::int64_t group_size, bool sym) {
  constexpr std::int64_t side = 32;
  io::PackedLinear linear;
  linear.name = name;
  linear.bits = bits;
  linear.group_size = group_size;
  linear.sym = sym;
  linear.rows = side;
  linear.cols = side;
  const auto scales = static_cast<std::size_t>(linear.groups() * side);
  linear.qweight.assign(static_cast<std::size_t>(side * bits / 32 * side), 0x76543210u);
  linear.scales.assign(scales, Half{});
  linear.zeros.assign(scales, static_cast<std::uint8_t>(1 << (bits - 1)));
  for (std::int64_t k = 0; k < side; ++k) {
    linear.g_idx.push_back(group_size == -1 ? 0 : static_cast<std::int32_t>(k / group_size));
  }
  linear.record = {{"loss", 0.5}, {"damping", 0.01}, {"retries", 0}};
  return linear;
}

}  // namespace

io::BlockShard small_shard() {
  return {.block = 0,
          .fingerprint = "00112233445566778899aabbccddeeff",
          .spec = {{"bits", 4}, {"group_size", 16}},
          .linears = {linear("self_attn.q_proj", 4, 16, true), linear("fc1", 3, -1, false)},
          .run = {{"seconds", 1.5}, {"host", "node1"}}};
}

std::vector<std::byte> small_image() {
  auto image = io::to_image(small_shard());
  return {image.bytes().begin(), image.bytes().end()};
}

std::vector<std::byte> damaged(std::span<const std::byte> image, std::span<const std::uint8_t> edits) {
  const auto number = [&](std::size_t at) { return static_cast<std::size_t>(edits[at] << 8 | edits[at + 1]); };
  std::vector<std::byte> copy(image.begin(), image.end());
  if (edits.size() >= 2 && number(0) != 0) {
    copy.resize(number(0) % (2 * image.size()));
  }
  for (std::size_t at = 2; at + 3 <= edits.size() && !copy.empty(); at += 3) {
    copy[number(at) % copy.size()] ^= std::byte{edits[at + 2]};
  }
  return copy;
}

}  // namespace gptqd::fuzz
