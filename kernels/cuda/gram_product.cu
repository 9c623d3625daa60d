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
constexpr int shared_bytes = stages * stage_bytes + 1024 + ring_barrier_bytes(stages);
constexpr int sums_of_a_thread = 64 * tile_cols / hopper::group_threads;

using Tiles = ProductTiles<tile_rows, tile_cols>;

struct Problem {
  Rows<float> panel;
  std::int64_t m;
  std::int64_t n;
  bool accumulate;
  Tiles tiles;
  const float* peaks;  // [tiles across, stages]
  float* parts;        // sums of the pieces: [tile][piece][row][col]
};

constexpr int peak_warps = 8;
constexpr int peak_threads = 32 * peak_warps;

/// peaks[column of tiles, stage] = the largest |x| there.
template <class T>
__global__ void __launch_bounds__(peak_threads)
    find_peaks(Rows<const T> x, std::int64_t tokens, std::int64_t m, std::int64_t n, float* peaks) {
  constexpr int width = full_width<T>;
  static_assert(32 * width == tile_cols);
  constexpr std::uint32_t magnitudes = 0x7fff7fff;
  const std::int64_t col = std::int64_t{blockIdx.y} * tile_cols + threadIdx.x % 32 * width;
  const std::int64_t first = std::int64_t{blockIdx.x} * stage_terms + threadIdx.x / 32;
  // Of magnitudes the bits have the same order.
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < stage_terms / peak_warps; ++i) {
    const std::int64_t t = first + i * peak_warps;
    if (t >= tokens || col >= n) {
      continue;
    }
    Pack<T, width> pack{};
    if (col + width <= m) {
      pack = load_pack<width>(x.row(t) + col);
    } else {
      for (int j = 0; col + j < n; ++j) {
        pack.values[j] = x.row(t)[col + j];
      }
    }
    const auto* const words = reinterpret_cast<const std::uint32_t*>(&pack);
#pragma unroll
    for (int j = 0; j < width / 2; ++j) {
      largest = __vmaxu2(largest, words[j] & magnitudes);
    }
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
    peaks[std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = peak;
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

/// Where a thread's sums go: elements (row, col), (row, col + 1), (row + 8, col), (row + 8, col + 1) of quad q, whose
/// col is 8·q further. That is where wgmma leaves them.
class Target {
 public:
  __device__ Target(const Problem& problem, const TileWork<Tiles>& work, int block, int group, int thread) {
    const int row = block * block_rows + group * 64 + thread / 32 * 16 + thread % 32 / 4;
    const int col = 2 * (thread % 4);
    if (!work.is_whole()) {
      float* const part = problem.parts + (work.tile * problem.tiles.pieces + work.piece) * tile_rows * tile_cols;
      cols_ = tile_cols;
      for (int h = 0; h < 2; ++h) {
        exists_[h] = true;
        to_[h] = part + (row + 8 * h) * tile_cols + col;
      }
      return;
    }
    const std::int64_t first_row = work.place.row * tile_rows + row;
    const std::int64_t first_col = work.place.col * tile_cols + col;
    cols_ = static_cast<int>(min(problem.n - first_col, std::int64_t{tile_cols}));
    for (int h = 0; h < 2; ++h) {
      exists_[h] = first_row + 8 * h < problem.m;
      to_[h] = problem.panel.row(first_row + 8 * h) + first_col;
    }
  }

  __device__ void store(const float (&sums)[sums_of_a_thread]) const {
    for_pairs(sums, [](float* to, float x, float y, bool both) {
      if (both) {
        *reinterpret_cast<float2*>(to) = {x, y};
      } else {
        *to = x;
      }
    });
  }
  /// Nobody else adds to it meanwhile, so that the order is given.
  __device__ void add(const float (&sums)[sums_of_a_thread]) const { for_pairs(sums, add_in_memory); }

 private:
  template <class Put>
  __device__ void for_pairs(const float (&sums)[sums_of_a_thread], const Put& put) const {
    const bool whole = cols_ > tile_cols - 8 + 1;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!exists_[h]) {
        continue;
      }
      if (whole) {
#pragma unroll
        for (int q = 0; q < sums_of_a_thread / 4; ++q) {
          put(to_[h] + 8 * q, sums[4 * q + 2 * h], sums[4 * q + 2 * h + 1], true);
        }
      } else {
#pragma unroll
        for (int q = 0; q < sums_of_a_thread / 4; ++q) {
          if (8 * q < cols_) {
            put(to_[h] + 8 * q, sums[4 * q + 2 * h], sums[4 * q + 2 * h + 1], 8 * q + 1 < cols_);
          }
        }
      }
    }
  }

  int cols_;  // from col on
  bool exists_[2];
  float* to_[2];
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
__device__ void multiply_stages(const Problem& problem, TileWork<Tiles> work, std::uint32_t memory,
                                const Barriers& barriers, int block, int group) {
  const int thread = static_cast<int>(threadIdx.x) % hopper::group_threads;
  constexpr int step = 16;  // terms of one instruction
  constexpr int step_bytes = step * atom_cols * 2;
  constexpr int last_step = stage_terms / step - 1;
  Ring ring;
  while (work.next()) {
    const Target target(problem, work, block, group, thread);
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
      if (adds) {
        target.add(sums);
      } else {
        target.store(sums);
      }
      adds = true;
      begin += count;
      most = sum_stages;
    }
  }
}

#endif

template <class T>
__global__ void __cluster_dims__(cluster_blocks, 1, 1) __launch_bounds__(product_threads, 1)
    multiply_tiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ Problem problem) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte memory[];
  const std::uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
  const Barriers barriers{aligned + stages * stage_bytes};
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
      load_stages(x, problem, work, aligned, barriers, block);
    }
  } else {
    hopper::claim_registers<232>();
    multiply_stages<T>(problem, work, aligned, barriers, static_cast<int>(block), group);
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
__global__ void __launch_bounds__(join_threads) join_pieces(const __grid_constant__ Problem problem) {
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
  float* const to = problem.panel.row(to_row) + to_col;
#pragma unroll
  for (int i = 0; i < join_width; ++i) {
    if (to_col + i < problem.n) {
      to[i] = problem.accumulate ? to[i] + sums.values[i] : sums.values[i];
    }
  }
}

}  // namespace

bool allows_gram_product(const CudaStream& stream, const ConstAnyView<2>& x, const AnyView<2>& panel) {
  constexpr int map_width = 8;  // 16 bytes
  const auto& gpu = stream.gpu().properties();
  return gpu.major == 9 && gpu.minor == 0 && (x.dtype == DType::f16 || x.dtype == DType::bf16) &&
         allows_packs(map_width, x) && panel.dtype == DType::f32 && allows_packs(2, panel);
}

void gram_product(CudaStream& stream, const GramProduct& args) {
  const std::int64_t most = stream.gpu().properties().multiProcessorCount / cluster_blocks;
  const std::int64_t tokens = args.x.rows();
  Problem problem{.panel = Rows<float>(args.panel),
                  .m = args.panel.rows(),
                  .n = args.panel.cols(),
                  .accumulate = args.accumulate,
                  .tiles = product_tiles<tile_rows, tile_cols>(args.panel.rows(), args.panel.cols(), true,
                                                               divide_up(tokens, stage_terms), true, most),
                  .peaks = nullptr,
                  .parts = nullptr};
  const std::int64_t peaks = std::int64_t{problem.tiles.across} * problem.tiles.stages;
  problem.parts = stream.scratch_of<float>(problem.tiles.part_floats() + peaks);
  float* const found = problem.parts + problem.tiles.part_floats();
  problem.peaks = found;
  // A single row has no stride, but the map wants one.
  const std::int64_t stride = tokens == 1 ? divide_up(args.x.cols(), 8) * 8 : args.x.stride;
  const auto map =
      hopper::tensor_map<atom_cols, 2>(args.x.dtype, args.x.data, {args.x.cols(), tokens},
                                       {stride * size_of(args.x.dtype)}, {atom_cols, stage_terms});
  const auto run = [&]<class T>() {
    const dim3 grid(static_cast<unsigned int>(problem.tiles.stages), static_cast<unsigned int>(problem.tiles.across));
    find_peaks<T><<<grid, peak_threads, 0, stream.stream()>>>(Rows<const T>(args.x), tokens, args.x.cols(), problem.n,
                                                              found);
    check(cudaFuncSetAttribute(multiply_tiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "giving a kernel its shared memory");
    const auto blocks = static_cast<unsigned int>(clusters_of(problem.tiles, most) * cluster_blocks);
    multiply_tiles<T><<<blocks, product_threads, shared_bytes, stream.stream()>>>(map, problem);
  };
  args.x.dtype == DType::f16 ? run.template operator()<__half>() : run.template operator()<__nv_bfloat16>();
  if (problem.tiles.cut > 0) {
    join_pieces<<<grid_size(problem.tiles.cut * (tile_rows / join_rows)), join_threads, 0, stream.stream()>>>(problem);
  }
}

}  // namespace gptqd::cuda
