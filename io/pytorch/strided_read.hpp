#pragma once
/// @file Reading a strided tensor from a file as if it were dense.
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/atomic_file.hpp"
#include "io/checkpoint_reader.hpp"

namespace gptqd::io {

/// Bytes [offset, offset + out.size()) of the row-major, dense form of a tensor with strides.
///
/// The file is read in the order in which the tensor lies there, a few MiB at a time through one buffer, however large
/// tensor and range are. Thread-safe.
/// @pre info.strides has one entry an extent, none negative; all elements lie inside the file; the range inside the
/// tensor
/// @throws Error (input) when the file has become shorter; (io)
void read_strided(const File& file, const TensorInfo& info, std::int64_t offset, std::span<std::byte> out);

}  // namespace gptqd::io
