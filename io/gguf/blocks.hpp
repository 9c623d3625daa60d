#pragma once
/// @file GPTQ grids in ggml's block types, without loss (docs/formats.md).
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/artifact/content.hpp"
#include "io/gguf/gguf_file.hpp"

namespace gptqd::io {

/// The block type that holds layers of these settings exactly: Q4_0 for 2 and 3 bits and 4 bits symmetric, Q5_0 for 4
/// bits asymmetric, Q8_0 for 8 bits symmetric; nullopt for the others.
std::optional<GgmlType> block_type(const LayerSettings& settings);

/// Why no block type holds the layer exactly, in words; nullopt when one does. Needs the above, groups of whole blocks
/// of 32 columns, and the natural order of columns.
std::optional<std::string> block_obstacle(const LayerFormat& layer);

/// The layer's rows as blocks of block_type().
///
/// A block is d = the group's scale and 32 values q − zero (+ 8 in Q4_0, + 16 in Q5_0).
/// @param row_order  the source's row for each row of the result; empty: as they are
/// @pre no obstacle
std::vector<std::byte> to_blocks(const PackedLinear& linear, const std::vector<std::int64_t>& row_order);

}  // namespace gptqd::io
