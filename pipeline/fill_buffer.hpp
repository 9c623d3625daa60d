#pragma once
/// @file Brings bytes that come in pieces, from files or generators, into a device's buffer.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.hpp"

namespace gptqd::pipeline {

/// Pieces that fill a buffer are at most this long.
inline constexpr std::int64_t fill_piece_bytes = std::int64_t{32} << 20;

/// A part of a buffer, and what writes it.
struct FillPiece {
  std::int64_t offset = 0;
  std::int64_t bytes = 0;  ///< at most fill_piece_bytes
  std::function<void(std::span<std::byte>)> fill;
};

/// Writes all pieces, several at a time: in place where the device's memory is the host's, else through a few pieces
/// of page-locked memory, so that a piece is copied while others are read. Returns when all is there.
/// @param stream  for the copies; nothing else may use it meanwhile
/// @param tick    called once a piece, from several threads
/// @throws what a piece's `fill` threw
void fill_buffer(Backend& backend, Stream& stream, const Buffer& target, const std::vector<FillPiece>& pieces,
                 const std::function<void()>& tick);

}  // namespace gptqd::pipeline
