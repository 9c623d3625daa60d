#include "kernels/cuda/gram_product.cuh"

#include <cuda.h>

#include "kernels/cuda/product_tiles.cuh"

namespace gptqd::cuda {

namespace {

// A cluster of two thread blocks computes one tile of 256 rows by 256 columns, each its 128 rows; of the columns' stages
// either block loads half, for both. Two warpgroups have 64 rows each, a third one loads.
constexpr int groups = 2;
constexpr int product_threads = (groups + 1) * hopper::group_threads;
constexpr int block_rows = groups * 64;
constexpr int tile_rows = cluster_blocks * block_rows;
constexpr int tile_cols = 256;
/// Terms of one stage in shared memory.
constexpr int stage_terms = 64;
constexpr int stages = 4;
/// Stages of one sum, at most.
constexpr int sum_stages = 2048 / stage_terms;
/// A sum ends where the coming stage's largest number is so many times smaller than its own.
constexpr float drop = 4;
/// Shared memory holds atoms: 64 columns of a stage's terms. A term's columns are 128 bytes, swizzled.
constexpr int atom_cols = 64;
constexpr int atom_bytes = atom_cols * stage_terms * 2;
constexpr int row_atoms = block_rows / atom_cols;
constexpr int col_atoms = tile_cols / atom_cols;
constexpr int stage_bytes = (row_atoms + col_atoms) * atom_bytes;
constexpr int sums_of_a_thread = 64 * tile_cols / hopper::group_threads;
/// Sums on their way to memory: a warp has 16 rows of each tile, and brings 32 columns of them at a time.
constexpr int warps = groups * hopper::group_threads / 32;
constexpr int warp_rows = 16;
constexpr int slab_cols = 32;
constexpr int slab_bytes = warp_rows * slab_cols * 4;
constexpr int slabs = 2;
constexpr int shared_bytes = stages * stage_bytes + warps * slabs * slab_bytes + 1024 + ring_barrier_bytes(stages);

using Tiles = ProductTiles<tile_rows, tile_cols>;

struct Problem {
  std::int64_t m;
  std::int64_t n;
  bool accumulate;
  Tiles tiles;
  const float* peaks;  // [tiles across, stages]
  const float* parts;  // sums of the pieces: [tile][piece][row][col]
};

struct Maps {
  CUtensorMap x;
  CUtensorMap panel;
  CUtensorMap parts;
};

constexpr int peak_warps = 8;
constexpr int peak_threads = 32 * peak_warps;

/// peaks[column of tiles, stage] = the largest |x| there, maybe of some columns more. Rows are read in whole packs, which
/// the last row's memory must hold.
template <class T>
__global__ void __launch_bounds__(peak_threads)
    find_peaks(Rows<const T> x, std::int64_t tokens, std::int64_t n, unsigned int across, float* peaks) {
  constexpr int width = full_width<T>;
  static_assert(32 * width == tile_cols);
  constexpr std::uint32_t magnitudes = 0x7fff7fff;
  // Blocks that run at once have whole rows: neighbours in memory are read together.
  const std::int64_t stage = blockIdx.x / across;
  const std::int64_t tile = blockIdx.x % across;
  const std::int64_t col = tile * tile_cols + threadIdx.x % 32 * width;
  const std::int64_t first = stage * stage_terms + threadIdx.x / 32;
  // Of magnitudes the bits have the same order.
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < stage_terms / peak_warps; ++i) {
    const std::int64_t t = first + i * peak_warps;
    uint4 words{};
    if (t < tokens && col < n) {
      words = *reinterpret_cast<const uint4*>(x.row(t) + col);
    }
    largest = __vmaxu2(largest, __vmaxu2(__vmaxu2(words.x & magnitudes, words.y & magnitudes),
                                         __vmaxu2(words.z & magnitudes, words.w & magnitudes)));
  }
  const auto bits = static_cast<unsigned short>(max(largest & 0xffff, largest >> 16));
  float peak = 0;
  if constexpr (std::is_same_v<T, __half>) {
    peak = __half2float(__ushort_as_half(bits));
  } else {
    peak = __bfloat162float(__ushort_as_bfloat16(bits));
  }
  peak = reduce<peak_threads>(peak, Maximum{});
  if (threadIdx.x == 0) {
    peaks[tile * (gridDim.x / across) + stage] = peak;
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using Ring = StageRing<stages>;
using Barriers = StageBarriers<stages>;

/// One thread: loads stage after stage.
__device__ void load_stages(const CUtensorMap& x, const Problem& problem, TileWork<Tiles> work, std::uint32_t memory,
                            const Barriers& barriers, std::uint32_t block) {
  Ring ring;
  constexpr int shared_atoms = col_atoms / cluster_blocks;
  const int first_atom = static_cast<int>(block) * shared_atoms;
  while (work.next()) {
    const auto row = static_cast<int>(work.place.row * tile_rows + block * block_rows);
    const auto col = static_cast<int>(work.place.col * tile_cols);
    for (int stage = work.begin; stage < work.end; ++stage) {
      const int term = stage * stage_terms;
      hopper::wait_for(barriers.empty(ring.stage), ring.parity ^ 1);
      const std::uint32_t full = barriers.full(ring.stage);
      hopper::arrive_expecting(full, stage_bytes);
      const std::uint32_t to = memory + ring.stage * stage_bytes;
      for (int atom = 0; atom < row_atoms; ++atom) {
        hopper::load_box(to + atom * atom_bytes, x, full, row + atom * atom_cols, term);
      }
      for (int atom = first_atom; atom < first_atom + shared_atoms; ++atom) {
        hopper::load_box_for_blocks(to + (row_atoms + atom) * atom_bytes, x, full, col + atom * atom_cols, term, 0b11);
      }
      ring.advance();
    }
  }
}

/// A warp's way of sums to memory.
class Outlet {
 public:
  /// @param memory  of this warp: slabs, each at a multiple of 1024 bytes
  __device__ Outlet(const Maps& maps, std::uint32_t memory) : maps_(maps), memory_(memory) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    leads_ = lane == 0;
    // Of each 8 x 8 tile of sums a thread has two neighbours in a row, and two 8 rows further down. The 16-byte pieces of
    // a row are permuted by its number.
    const int row = lane / 4;
    row_bytes_ = row * slab_cols * 4 + lane % 2 * 8;
    piece_ = lane % 4 / 2;
    swizzle_ = row;
  }
  /// Rows from `row` on of the panel, or of the pieces.
  __device__ void put(const float (&sums)[sums_of_a_thread], bool whole, bool adds, int row, int col) {
    const CUtensorMap& map = whole ? maps_.panel : maps_.parts;
    if (leads_) {
      hopper::wait_for_stores<0>();  // the sums before: additions have an order
    }
#pragma unroll
    for (int slab = 0; slab < tile_cols / slab_cols; ++slab) {
      const std::uint32_t at = memory_ + slab % slabs * slab_bytes;
      if (leads_) {
        hopper::wait_for_reads_of_stores<slabs - 1>();
      }
      __syncwarp();
#pragma unroll
      for (int q = 0; q < slab_cols / 8; ++q) {
        const std::uint32_t to = at + row_bytes_ + static_cast<std::uint32_t>(((2 * q + piece_) ^ swizzle_) * 16);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int i = 4 * (slab * (slab_cols / 8) + q) + 2 * h;
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + h * 8 * slab_cols * 4), "f"(sums[i]),
                       "f"(sums[i + 1])
                       : "memory");
        }
      }
      hopper::fence_for_copies();
      __syncwarp();
      if (leads_) {
        if (adds) {
          hopper::add_box(map, at, col + slab * slab_cols, row);
        } else {
          hopper::store_box(map, at, col + slab * slab_cols, row);
        }
        hopper::end_stores();
      }
    }
  }
  /// Before the block ends.
  __device__ void drain() const {
    if (leads_) {
      hopper::wait_for_stores<0>();
    }
  }

 private:
  const Maps& maps_;
  std::uint32_t memory_;
  bool leads_;
  std::uint32_t row_bytes_;
  int piece_;
  int swizzle_;
};

/// Stages [begin, begin + the result) of one sum, at most `most`: up to the first after which numbers drop. All threads of
/// a warp call.
__device__ int stages_of_sum(const float* peaks, int begin, int end, int most) {
  static_assert(sum_stages == 32);  // a lane each
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float peak = begin + lane < end ? __ldg(peaks + begin + lane) : 0.0f;
  const float coming = begin + lane + 1 < end ? __ldg(peaks + begin + lane + 1) : 0.0f;
  float largest = peak;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float before = __shfl_up_sync(0xffffffffu, largest, distance);
    largest = lane >= distance ? fmaxf(largest, before) : largest;
  }
  const unsigned int drops = __ballot_sync(0xffffffffu, drop * coming < largest || begin + lane + 1 >= end);
  return min(most, drops == 0 ? sum_stages : __ffs(static_cast<int>(drops)));
}

/// One warpgroup: 64 rows of each tile.
template <class T>
__device__ void multiply_stages(const Maps& maps, const Problem& problem, TileWork<Tiles> work, std::uint32_t memory,
                                const Barriers& barriers, int block, int group) {
  // From a neighbour, so that the compiler knows it for the same in the whole warp.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  Outlet outlet(maps, memory + stages * stage_bytes + warp * slabs * slab_bytes);
  constexpr int step = 16;  // terms of one instruction
  constexpr int step_bytes = step * atom_cols * 2;
  constexpr int last_step = stage_terms / step - 1;
  Ring ring;
  while (work.next()) {
    const int row_in_tile = block * block_rows + warp * warp_rows;
    const auto row = static_cast<int>(work.is_whole()
                                          ? work.place.row * tile_rows
                                          : (work.tile * problem.tiles.pieces + work.piece) * tile_rows) +
                     row_in_tile;
    const int col = work.is_whole() ? static_cast<int>(work.place.col * tile_cols) : 0;
    const float* const peaks = problem.peaks + work.place.col * problem.tiles.stages;
    bool adds = problem.accumulate && work.is_whole();
    // Neighbours end their first sums at other times, so that not all of them use the memory at once.
    int most = sum_stages - static_cast<int>(work.place.row + work.place.col + 4 * group) % 8 * (sum_stages / 8);
    for (int begin = work.begin; begin < work.end;) {
      const int count = stages_of_sum(peaks, begin, work.end, most);
      float sums[sums_of_a_thread];
      hopper::keep(sums);
      int last = 0;
      for (int i = 0; i < count; ++i) {
        hopper::wait_for(barriers.full(ring.stage), ring.parity);
        const std::uint32_t from = memory + ring.stage * stage_bytes;
        const auto a = hopper::Factor::terms_in_rows<atom_cols>(from + group * atom_bytes, atom_bytes);
        const auto b = hopper::Factor::terms_in_rows<atom_cols>(from + row_atoms * atom_bytes, atom_bytes);
        hopper::begin_products();
        // The first tokens come last: where they are massive, as those of a window are, less is added on top of them.
#pragma unroll
        for (int k = last_step; k >= 0; --k) {
          hopper::multiply_rows<T>(sums, a + k * step_bytes, b + k * step_bytes, i > 0 || k < last_step);
        }
        hopper::end_products();
        if (i > 0) {
          hopper::wait_for_products<1>();
          barriers.give_back(last);
        }
        last = ring.stage;
        ring.advance();
      }
      hopper::wait_for_products<0>();
      hopper::keep(sums);
      barriers.give_back(last);
      outlet.put(sums, work.is_whole(), adds, row, col);
      adds = true;
      begin += count;
      most = sum_stages;
    }
  }
  outlet.drain();
}

#endif

template <class T>
__global__ void GPTQD_CLUSTER __launch_bounds__(product_threads, 1)
    multiply_tiles(const __grid_constant__ Maps maps, const __grid_constant__ Problem problem) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte memory[];
  const std::uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
  const Barriers barriers{aligned + stages * stage_bytes + warps * slabs * slab_bytes};
  const std::uint32_t block = hopper::block_in_cluster();
  const int group = static_cast<int>(threadIdx.x) / hopper::group_threads;
  if (threadIdx.x == 0) {
    barriers.initialize(groups * hopper::group_threads / 32);
  }
  hopper::synchronize_cluster();
  const TileWork<Tiles> work(problem.tiles, blockIdx.x / cluster_blocks, gridDim.x / cluster_blocks);
  if (group == groups) {
    hopper::yield_registers<40>();
    if (threadIdx.x % hopper::group_threads == 0) {
      load_stages(maps.x, problem, work, aligned, barriers, block);
    }
  } else {
    hopper::claim_registers<232>();
    multiply_stages<T>(maps, problem, work, aligned, barriers, static_cast<int>(block), group);
  }
  __syncwarp();
  hopper::synchronize_cluster();  // the other block may still write here
#else
  __trap();  // gram_product() is called on GPUs that have the instructions, in builds for them
#endif
}

constexpr int join_rows = 4;
constexpr int join_width = 4;
constexpr int join_threads = tile_cols / join_width * join_rows;

/// Adds up the pieces of a tile that was cut, in order: a block has a few of its rows.
__global__ void __launch_bounds__(join_threads)
    join_pieces(const __grid_constant__ Problem problem, Rows<float> panel) {
  constexpr std::int64_t floats = std::int64_t{tile_rows} * tile_cols;
  const std::int64_t tile = blockIdx.x / (tile_rows / join_rows);
  const int row = static_cast<int>(blockIdx.x) % (tile_rows / join_rows) * join_rows +
                  static_cast<int>(threadIdx.x) / (tile_cols / join_width);
  const int col = static_cast<int>(threadIdx.x) % (tile_cols / join_width) * join_width;
  const float* const parts = problem.parts + tile * problem.tiles.pieces * floats + row * tile_cols + col;
  Pack<float, join_width> sums{};
#pragma unroll 4
  for (int piece = 0; piece < problem.tiles.pieces; ++piece) {
    const auto part = load_pack<join_width>(parts + piece * floats);
#pragma unroll
    for (int i = 0; i < join_width; ++i) {
      sums.values[i] += part.values[i];
    }
  }
  const TilePlace place = problem.tiles.place_of(problem.tiles.whole + tile);
  const std::int64_t to_row = place.row * tile_rows + row;
  const std::int64_t to_col = place.col * tile_cols + col;
  if (to_row >= problem.m) {
    return;
  }
  float* const to = panel.row(to_row) + to_col;
#pragma unroll
  for (int i = 0; i < join_width; ++i) {
    if (to_col + i < problem.n) {
      to[i] = problem.accumulate ? to[i] + sums.values[i] : sums.values[i];
    }
  }
}

}  // namespace

bool allows_gram_product(const CudaStream& stream, const ConstAnyView<2>& x, const AnyView<2>& panel) {
  constexpr int x_pack = 8;  // 16 bytes, as maps want them
  constexpr int panel_pack = 4;
  const auto& gpu = stream.gpu().properties();
  return gpu.major == 9 && gpu.minor == 0 && (x.dtype == DType::f16 || x.dtype == DType::bf16) &&
         allows_packs(x_pack, x) && x.cols() % x_pack == 0 && panel.dtype == DType::f32 &&
         allows_packs(panel_pack, panel);
}

void gram_product(CudaStream& stream, const GramProduct& args) {
  const std::int64_t most = stream.gpu().properties().multiProcessorCount / cluster_blocks;
  const std::int64_t tokens = args.x.rows();
  Problem problem{.m = args.panel.rows(),
                  .n = args.panel.cols(),
                  .accumulate = args.accumulate,
                  .tiles = product_tiles<tile_rows, tile_cols>(args.panel.rows(), args.panel.cols(), true,
                                                               divide_up(tokens, stage_terms), true, most),
                  .peaks = nullptr,
                  .parts = nullptr};
  const std::int64_t peaks = std::int64_t{problem.tiles.across} * problem.tiles.stages;
  auto* const parts = stream.scratch_of<float>(problem.tiles.part_floats() + peaks);
  float* const found = parts + problem.tiles.part_floats();
  problem.parts = parts;
  problem.peaks = found;
  // A single row has no stride, but a map wants one.
  const auto stride_bytes = [](const auto& view) {
    const std::int64_t element = size_of(view.dtype);
    return view.rows() == 1 ? divide_up(view.cols() * element, 16) * 16 : view.stride * element;
  };
  const auto slab_map = [&](void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    return hopper::tensor_map<slab_cols, 2>(DType::f32, data, {cols, rows}, {stride}, {slab_cols, warp_rows});
  };
  const AnyView<2> panel = args.panel;
  Maps maps{.x = hopper::tensor_map<atom_cols, 2>(args.x.dtype, args.x.data, {args.x.cols(), tokens},
                                                  {stride_bytes(args.x)}, {atom_cols, stage_terms}),
            .panel = slab_map(panel.data, panel.rows(), panel.cols(), stride_bytes(panel)),
            .parts = {}};
  if (problem.tiles.cut > 0) {
    maps.parts = slab_map(parts, problem.tiles.part_floats() / tile_cols, tile_cols, tile_cols * size_of(DType::f32));
  }
  const auto run = [&]<class T>() {
    const auto across = static_cast<unsigned int>(problem.tiles.across);
    find_peaks<T><<<grid_size(peaks), peak_threads, 0, stream.stream()>>>(Rows<const T>(args.x), tokens, problem.n,
                                                                          across, found);
    check(cudaFuncSetAttribute(multiply_tiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "giving a kernel its shared memory");
    const auto blocks = static_cast<unsigned int>(clusters_of(problem.tiles, most) * cluster_blocks);
    multiply_tiles<T><<<blocks, product_threads, shared_bytes, stream.stream()>>>(maps, problem);
  };
  args.x.dtype == DType::f16 ? run.template operator()<__half>() : run.template operator()<__nv_bfloat16>();
  if (problem.tiles.cut > 0) {
    join_pieces<<<grid_size(problem.tiles.cut * (tile_rows / join_rows)), join_threads, 0, stream.stream()>>>(
        problem, Rows<float>(args.panel));
  }
}

}  // namespace gptqd::cuda
