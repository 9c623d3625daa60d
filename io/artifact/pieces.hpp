#pragma once
/// @file The bytes of an artifact's tensors in order, in pieces that fit in memory.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/artifact/content.hpp"

namespace gptqd::io {

/// Bytes of one tensor of the output; a tensor may come in several, one after another.
struct TensorBytes {
  std::size_t tensor = 0;  ///< index into what the caller counts tensors by
  OwnedBytes data;
};

/// Makes the next bytes of one or several tensors. Called once, on any thread.
using Piece = std::function<std::vector<TensorBytes>()>;

/// Pieces of at most 8 MiB that are a passing tensor as it lies in the source.
void append_passing(std::vector<Piece>& pieces, std::size_t tensor, const CheckpointReader& source,
                    const TensorInfo& info);

/// Makes the pieces on `threads` threads and gives their bytes to `consume` in order, on this thread.
void stream_pieces(const std::vector<Piece>& pieces, int threads,
                   const std::function<void(const TensorBytes&)>& consume);

/// Reads a layer and compares it with what was declared.
/// @throws Error (input) for another shape or other settings, and for what `validate` refuses
PackedLinear read_declared(const ArtifactContent& content, std::int64_t block, std::int64_t layer);

}  // namespace gptqd::io
