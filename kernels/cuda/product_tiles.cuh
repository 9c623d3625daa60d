#pragma once
/// @file How products on tensor cores are divided: into tiles of the result, one for a cluster of two thread blocks at a
/// time. Tiles that do not fill the GPU once more are cut into pieces of their terms.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace gptqd::cuda {

inline constexpr int cluster_blocks = 2;

/// Of a kernel whose blocks come in such clusters. Passes for GPUs without clusters refuse the attribute.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GPTQD_CLUSTER __cluster_dims__(cluster_blocks, 1, 1)
#else
#define GPTQD_CLUSTER
#endif

/// A tile's place, in units of tiles.
struct TilePlace {
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// The tiles of a result [m, n], row by row of tiles. Terms come in stages.
///
/// Clusters take one tile after another, all at the same terms at about the same time, so that they find in the cache
/// what their neighbours have loaded.
template <int tile_rows, int tile_cols>
struct ProductTiles {
  bool lower = false;  ///< only those that reach the diagonal
  int across = 0;
  std::int64_t whole = 0;  ///< tiles that are not cut
  std::int64_t cut = 0;    ///< tiles that are, after those
  int pieces = 1;          ///< of each
  int stages = 0;          ///< of a tile

  __host__ __device__ int in_row(int i) const {
    const int reaching = (tile_rows * i + tile_rows - 1) / tile_cols + 1;
    return lower && reaching < across ? reaching : across;
  }
  __device__ TilePlace place_of(std::int64_t tile) const {
    int row = 0;
    auto rest = static_cast<int>(tile);
    for (int width = 0; rest >= (width = in_row(row)); ++row) {
      rest -= width;
    }
    return {.row = row, .col = rest};
  }
  std::int64_t items() const { return whole + cut * pieces; }
  /// Floats that the sums of the pieces take.
  std::int64_t part_floats() const { return cut * pieces * tile_rows * tile_cols; }
};

/// In how many pieces to cut `tiles` tiles that `clusters` clusters do not do in whole rounds: what takes least time,
/// counted in stages. A piece costs a few stages to begin and end, its sums' way through memory their share of one.
inline int choose_pieces(std::int64_t tiles, std::int64_t clusters, std::int64_t stages_of_tile) {
  constexpr std::int64_t overhead = 8;
  constexpr int most = 16;
  int best = 1;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int pieces = 1; pieces <= std::min<std::int64_t>(most, stages_of_tile); ++pieces) {
    const std::int64_t rounds = divide_up(tiles * pieces, clusters);
    const std::int64_t joining = pieces > 1 ? overhead + tiles * pieces / 8 : 0;
    const std::int64_t time = rounds * (divide_up(stages_of_tile, pieces) + overhead) + joining;
    if (time < least) {
      least = time;
      best = pieces;
    }
  }
  return best;
}

/// @param cut_terms  whether tiles may be cut, which depends on m and n and decides last bits
template <int tile_rows, int tile_cols>
ProductTiles<tile_rows, tile_cols> product_tiles(std::int64_t m, std::int64_t n, bool lower, std::int64_t stages,
                                                 bool cut_terms, std::int64_t clusters) {
  ProductTiles<tile_rows, tile_cols> tiles;
  tiles.lower = lower;
  tiles.across = static_cast<int>(divide_up(n, tile_cols));
  tiles.stages = static_cast<int>(stages);
  for (int i = 0; i < divide_up(m, tile_rows); ++i) {
    tiles.whole += tiles.in_row(i);
  }
  if (const std::int64_t rest = tiles.whole % clusters; cut_terms && rest > 0) {
    tiles.pieces = choose_pieces(rest, clusters, stages);
    if (tiles.pieces > 1) {
      tiles.cut = rest;
      tiles.whole -= rest;
    }
  }
  return tiles;
}

/// Clusters to start. Long tiles have one each, so that those wait for room alone that find none: other streams' kernels
/// may hold some multiprocessors. For short ones a cluster's beginning would cost too much.
template <class Tiles>
std::int64_t clusters_of(const Tiles& tiles, std::int64_t most) {
  constexpr int long_tile_stages = 192;
  return tiles.stages >= long_tile_stages ? tiles.items() : std::min(most, tiles.items());
}

/// One cluster's work: stages [begin, end) of one tile after another.
template <class Tiles>
class TileWork {
 public:
  __device__ TileWork(const Tiles& tiles, std::int64_t cluster, std::int64_t clusters)
      : tiles_(tiles), clusters_(clusters), item_(cluster - clusters) {}
  /// False when there is none left.
  __device__ bool next() {
    item_ += clusters_;
    const std::int64_t cut_item = item_ - tiles_.whole;
    if (cut_item < 0) {
      place = tiles_.place_of(item_);
      begin = 0;
      end = tiles_.stages;
      return true;
    }
    if (cut_item >= tiles_.cut * tiles_.pieces) {
      return false;
    }
    tile = cut_item % tiles_.cut;
    piece = static_cast<int>(cut_item / tiles_.cut);
    place = tiles_.place_of(tiles_.whole + tile);
    begin = static_cast<int>(std::int64_t{tiles_.stages} * piece / tiles_.pieces);
    end = static_cast<int>(std::int64_t{tiles_.stages} * (piece + 1) / tiles_.pieces);
    return true;
  }
  __device__ bool is_whole() const { return tile < 0; }

  TilePlace place;
  int begin = 0;
  int end = 0;
  std::int64_t tile = -1;  ///< among those that are cut, or −1
  int piece = 0;

 private:
  const Tiles& tiles_;
  std::int64_t clusters_;
  std::int64_t item_;
};

/// Bytes of the barriers of a ring of stages in shared memory.
constexpr int ring_barrier_bytes(int stages) { return 2 * stages * 8; }

/// *to += x, and with `both` to[1] += y, rounded to nearest: done where the memory is, the thread does not wait. In
/// program order with what this thread does there. @pre 8-byte aligned where both
__device__ inline void add_in_memory(float* to, float x, float y, bool both) {
#if __CUDA_ARCH__ >= 900
  if (both) {
    asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y) : "memory");
    return;
  }
#endif
  atomicAdd(to, x);
  if (both) {
    atomicAdd(to + 1, y);
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Stages in a ring in shared memory, and which time around it is.
template <int stages>
struct StageRing {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// The barriers of such a ring: full when a stage's bytes are there, empty when products of both blocks have read it.
template <int stages>
struct StageBarriers {
  std::uint32_t first;
  __device__ std::uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ std::uint32_t empty(int stage) const { return first + 8 * (stages + stage); }
  /// One thread, before the cluster synchronizes. `warps` of each block read a stage.
  __device__ void initialize(int warps) const {
    for (int stage = 0; stage < stages; ++stage) {
      hopper::initialize_barrier(full(stage), 1);
      hopper::initialize_barrier(empty(stage), cluster_blocks * warps);
    }
    hopper::publish_barriers();
  }
  /// Every warp, when its products have read the stage.
  __device__ void give_back(int stage) const {
    if (threadIdx.x % 32 < cluster_blocks) {
      hopper::arrive_at_block(empty(stage), threadIdx.x % 32);
    }
  }
};

#endif

}  // namespace gptqd::cuda
