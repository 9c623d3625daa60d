/// @file Sums of squares of a matrix product's elements by Hopper's warpgroup-level matrix instructions.
#include <cuda.h>

#include "kernels/cuda/product_tiles.cuh"
#include "kernels/cuda/square_products.cuh"

namespace gptqd::cuda {

namespace {

// A cluster of two thread blocks computes a tile of 256 rows by 256 columns at a time, each its 128 rows; of the
// factor's stages either block loads half, for both. Two warpgroups have 64 rows each, a third one loads.
constexpr int groups = 2;
constexpr int product_threads = (groups + 1) * hopper::group_threads;
constexpr int block_rows = groups * 64;
constexpr int tile_rows = cluster_blocks * block_rows;
constexpr int tile_cols = 256;
/// Terms of one stage in shared memory.
constexpr int stage_terms = 64;
constexpr int stages = 4;
// Shared memory holds panels of 128 bytes a row, swizzled: one of the block's rows of δ, whose columns are the terms,
// and four of 64 columns of the factor, whose rows are.
constexpr int delta_bytes = block_rows * stage_terms * 2;
constexpr int panel_cols = 64;
constexpr int panel_bytes = stage_terms * panel_cols * 2;
constexpr int panels = tile_cols / panel_cols;
constexpr int stage_bytes = delta_bytes + panels * panel_bytes;
static_assert(SquareProducts::padding % stage_terms == 0 && tile_cols % stage_terms == 0);

struct Problem {
  SquareProducts args;
  int across;  // tiles of columns
  int tiles;
};

/// Numbers of tiles that are on their way to those who compute them: two barriers and a word each.
constexpr int queue_slots = 2;
constexpr int queue_at = stages * stage_bytes + ring_barrier_bytes(stages);
constexpr int shared_bytes = queue_at + queue_slots * (2 * 8 + 4) + 1024;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using Ring = StageRing<stages>;
using Barriers = StageBarriers<stages>;
constexpr int group_warps = hopper::group_threads / 32;
constexpr int products_of_a_thread = 64 * tile_cols / hopper::group_threads;
/// Warps of a block that read tile numbers: those that multiply, and one that loads.
constexpr int readers = groups * group_warps + 1;

/// Tiles row by row of tiles, the deepest of a row first: what runs at the same time has rows of δ and columns of the
/// factor in common, and what ends a piece of the work is short.
struct Tile {
  int row;  // of tiles
  int col;
  int begin;  // stages [begin, end) of its terms: column c of the factor begins at row c
  int end;

  __device__ Tile(const Problem& problem, int number)
      : row(number / problem.across),
        col(number % problem.across),
        begin(col * (tile_cols / stage_terms)),
        end(static_cast<int>(problem.args.depth / stage_terms)) {}
};

/// Tile numbers for the warps of both blocks: words in shared memory, and barriers that tell when one has come ("full")
/// and been read ("empty").
struct NumberQueue {
  static constexpr int slots = queue_slots;
  static constexpr int none = -1;  // no more tiles

  std::uint32_t first;

  __device__ std::uint32_t full(int slot) const { return first + 8 * slot; }
  __device__ std::uint32_t empty(int slot) const { return first + 8 * (slots + slot); }
  __device__ std::uint32_t number(int slot) const { return first + 16 * slots + 4 * slot; }
};

/// One thread, before the cluster synchronizes.
__device__ void initialize(const Barriers& barriers, const NumberQueue& queue) {
  for (int slot = 0; slot < NumberQueue::slots; ++slot) {
    hopper::initialize_barrier(queue.full(slot), 1);
    hopper::initialize_barrier(queue.empty(slot), cluster_blocks * readers);
  }
  barriers.initialize(groups * group_warps);
}

/// One thread of the cluster's first block: takes one tile after another and tells both blocks. A cluster that starts
/// late or has deep tiles takes fewer.
__device__ void take_tiles(const Problem& problem, const NumberQueue& queue) {
  StageRing<NumberQueue::slots> ring;
  int number = 0;
  while (number != NumberQueue::none) {
    hopper::wait_for(queue.empty(ring.stage), ring.parity ^ 1);
    const int next = atomicAdd(problem.args.taken, 1);
    number = next < problem.tiles ? next : NumberQueue::none;
    for (int block = 0; block < cluster_blocks; ++block) {
      hopper::send_to_block(queue.number(ring.stage), queue.full(ring.stage), block, number);
    }
    ring.advance();
  }
}

/// A warp's view of the queue; all of its threads call.
class TileNumbers {
 public:
  __device__ explicit TileNumbers(const NumberQueue& queue) : queue_(queue) {}
  __device__ int next() {
    hopper::wait_for(queue_.full(ring_.stage), ring_.parity);
    const int number = hopper::load_word(queue_.number(ring_.stage));
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      hopper::arrive_at_block(queue_.empty(ring_.stage), 0);
    }
    ring_.advance();
    return number;
  }

 private:
  NumberQueue queue_;
  StageRing<NumberQueue::slots> ring_;
};

/// One thread loads a tile's stages, from the last terms to the first: there tiles of a row begin together.
__device__ void load_stages(const CUtensorMap& delta, const CUtensorMap& factor, const Tile& tile, std::uint32_t memory,
                            const Barriers& barriers, std::uint32_t block, Ring& ring) {
  constexpr int shared_panels = panels / cluster_blocks;
  const int first_panel = static_cast<int>(block) * shared_panels;
  const int row = tile.row * tile_rows + static_cast<int>(block) * block_rows;
  const int col = tile.col * tile_cols;
  for (int stage = tile.end - 1; stage >= tile.begin; --stage) {
    const int term = stage * stage_terms;
    hopper::wait_for(barriers.empty(ring.stage), ring.parity ^ 1);
    const std::uint32_t full = barriers.full(ring.stage);
    hopper::arrive_expecting(full, stage_bytes);
    const std::uint32_t to = memory + ring.stage * stage_bytes;
    hopper::load_box(to, delta, full, term, row);
    for (int panel = first_panel; panel < first_panel + shared_panels; ++panel) {
      hopper::load_box_for_blocks(to + delta_bytes + panel * panel_bytes, factor, full, col + panel * panel_cols, term,
                                  0b11);
    }
    ring.advance();
  }
}

/// Σ of squares of what a thread has of row 0 or 1 of its two: eight at a time in fp32, whose rounding is far below
/// that of the operands.
__device__ double sum_of_squares(const float (&products)[products_of_a_thread], int half) {
  constexpr int quads = 4;
  double sum = 0;
#pragma unroll
  for (int first = 0; first < products_of_a_thread / 4; first += quads) {
    float some = 0;
#pragma unroll
    for (int q = first; q < first + quads; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float product = products[4 * q + 2 * half + i];
        some = fmaf(product, product, some);
      }
    }
    sum += static_cast<double>(some);
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum;
}

/// One warpgroup: 64 rows of each tile.
__device__ void multiply_stages(const Problem& problem, const NumberQueue& queue, std::uint32_t memory,
                                const Barriers& barriers, std::uint32_t block, int group) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int own_row = static_cast<int>(block) * block_rows + group * 64 +
                      static_cast<int>(threadIdx.x) % hopper::group_threads / 32 * 16 + lane / 4;
  constexpr int step = 16;  // terms of one instruction
  TileNumbers numbers(queue);
  Ring ring;
  int number = numbers.next();
  while (number != NumberQueue::none) {
    const Tile tile(problem, number);
    float products[products_of_a_thread];
    hopper::keep(products);
    int last = 0;
    for (int stage = tile.begin; stage < tile.end; ++stage) {
      hopper::wait_for(barriers.full(ring.stage), ring.parity);
      const std::uint32_t from = memory + ring.stage * stage_bytes;
      const auto a = hopper::Factor::terms_in_columns<stage_terms>(from + group * (64 * stage_terms * 2));
      const auto b = hopper::Factor::terms_in_rows<panel_cols>(from + delta_bytes, panel_bytes);
      hopper::begin_products();
#pragma unroll
      for (int k = 0; k < stage_terms / step; ++k) {
        hopper::multiply_by_rows<__half>(products, a + k * step * 2, b + k * step * panel_cols * 2,
                                         stage > tile.begin || k > 0);
      }
      hopper::end_products();
      if (stage > tile.begin) {
        hopper::wait_for_products<1>();
        barriers.give_back(last);
      }
      last = ring.stage;
      ring.advance();
    }
    hopper::wait_for_products<0>();
    barriers.give_back(last);
    number = numbers.next();
    hopper::keep(products);  // first what others wait for
    const double sums[2] = {sum_of_squares(products, 0), sum_of_squares(products, 1)};
    const int half = lane % 4;
    const std::int64_t row = std::int64_t{tile.row} * tile_rows + own_row + 8 * half;
    if (half < 2 && row < problem.args.rows) {
      problem.args.partial[tile.col * problem.args.rows + row] = half == 0 ? sums[0] : sums[1];
    }
  }
}

#endif

__global__ void GPTQD_CLUSTER __launch_bounds__(product_threads, 1)
    square_tiles(const __grid_constant__ CUtensorMap delta, const __grid_constant__ CUtensorMap factor,
                 const __grid_constant__ Problem problem) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte memory[];
  const std::uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
  const Barriers barriers{aligned + stages * stage_bytes};
  const NumberQueue queue{aligned + queue_at};
  const std::uint32_t block = hopper::block_in_cluster();
  const int group = static_cast<int>(threadIdx.x) / hopper::group_threads;
  if (threadIdx.x == 0) {
    initialize(barriers, queue);
  }
  hopper::synchronize_cluster();
  if (group == groups) {
    hopper::yield_registers<40>();
    const int thread = static_cast<int>(threadIdx.x) % hopper::group_threads;
    if (thread < 32) {
      TileNumbers numbers(queue);
      Ring ring;
      for (int number = numbers.next(); number != NumberQueue::none; number = numbers.next()) {
        if (thread == 0) {
          load_stages(delta, factor, Tile(problem, number), aligned, barriers, block, ring);
        }
        __syncwarp();
      }
    } else if (thread == 32 && block == 0) {
      take_tiles(problem, queue);
    }
  } else {
    hopper::claim_registers<232>();
    multiply_stages(problem, queue, aligned, barriers, block, group);
  }
  __syncwarp();
  hopper::synchronize_cluster();  // the other block may still write here
#else
  __trap();  // square_products_wgmma() is called on GPUs that have the instructions, in builds for them
#endif
}

}  // namespace

bool allows_square_products_wgmma(const CudaStream& stream) {
  const auto& gpu = stream.gpu().properties();
  return gpu.major == 9 && gpu.minor == 0;
}

SquareTiles square_tiles_wgmma(const CudaStream& stream) {
  return {
      .rows = tile_rows, .cols = tile_cols, .at_once = stream.gpu().properties().multiProcessorCount / cluster_blocks};
}

void square_products_wgmma(CudaStream& stream, const SquareProducts& args) {
  const auto delta = hopper::tensor_map<stage_terms, 2>(DType::f16, args.delta, {args.depth, args.rows},
                                                        {args.depth * size_of(DType::f16)}, {stage_terms, block_rows});
  const auto factor = hopper::tensor_map<panel_cols, 2>(DType::f16, args.factor, {args.width, args.depth},
                                                        {args.width * size_of(DType::f16)}, {panel_cols, stage_terms});
  check(cudaFuncSetAttribute(square_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "giving a kernel its shared memory");
  const std::int64_t across = divide_up(args.width, tile_cols);
  const std::int64_t tiles = divide_up(args.rows, tile_rows) * across;
  const auto clusters = static_cast<unsigned int>(std::min(tiles, square_tiles_wgmma(stream).at_once));
  square_tiles<<<clusters * cluster_blocks, product_threads, shared_bytes, stream.stream()>>>(
      delta, factor, {.args = args, .across = static_cast<int>(across), .tiles = static_cast<int>(tiles)});
}

}  // namespace gptqd::cuda
