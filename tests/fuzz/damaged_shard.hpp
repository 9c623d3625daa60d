#pragma once
/// @file A small shard, and damage to its file.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "io/shard_store.hpp"

namespace gptqd::fuzz {

/// Block 0 with two small linears of different formats.
io::BlockShard small_shard();
/// Its file.
std::vector<std::byte> small_image();

/// A copy of `image` with the damage that `edits` describe: two bytes of a new length (0: as it is; otherwise modulo
/// twice the old one, new bytes are zero), then position (two bytes) and pattern (one byte, exclusive or) as often as
/// there are three bytes more. Any edits describe some damage, or none.
std::vector<std::byte> damaged(std::span<const std::byte> image, std::span<const std::uint8_t> edits);

}  // namespace gptqd::fuzz
