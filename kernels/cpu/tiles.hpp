#pragma once
/// @file Rows of a matrix as tiles of a height that follows from the matrix's width alone.
#include <algorithm>
#include <cstdint>

#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/thread_pool.hpp"

namespace gptqd::cpu {

/// Rows of about 32,768 elements: enough work for a tile to be worth handing out, few enough for the cache.
inline std::int64_t row_tile_height(std::int64_t cols) {
  constexpr std::int64_t elements = std::int64_t{1} << 15;
  return std::max<std::int64_t>(1, elements / std::max<std::int64_t>(1, cols));
}

/// body(first, count) for tiles of rows of a matrix with `cols` columns.
template <class Body>
void for_row_tiles(ThreadPool& pool, std::int64_t rows, std::int64_t cols, const Body& body) {
  const std::int64_t height = row_tile_height(cols);
  pool.parallel_for(tile_count(rows, height), [&](std::int64_t tile, int) {
    const std::int64_t first = tile * height;
    body(first, std::min(height, rows - first));
  });
}

}  // namespace gptqd::cpu
