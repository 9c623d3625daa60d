#include "kernels/cuda/split_product.cuh"

#include <cuda.h>

#include "kernels/cuda/half_scaling.cuh"
#include "kernels/cuda/product_tiles.cuh"

namespace gptqd::cuda {

namespace {

// A cluster of two thread blocks computes one tile of 192 rows by 256 columns, each its 128 columns; what both need of
// the left operand either of them loads half of, for both: one the high parts, the other the low ones. Three warpgroups
// have 64 rows each, a fourth one loads.
constexpr int groups = 3;
constexpr int product_threads = (groups + 1) * hopper::group_threads;
constexpr int tile_rows = groups * 64;
constexpr int block_cols = 128;
constexpr int tile_cols = cluster_blocks * block_cols;
/// Terms of one stage in shared memory.
constexpr int stage_terms = static_cast<int>(SplitMatrix::stage_terms);
/// Stages whose terms the tensor cores sum.
constexpr int sum_stages = 128 / stage_terms;
constexpr int stages = 5;
/// Shared memory holds atoms: 64 columns of a stage's terms, first their high parts, then the low ones. A term's columns
/// are 128 bytes, swizzled.
constexpr int atom_cols = 64;
constexpr int part_bytes = atom_cols * stage_terms * 2;
constexpr int atom_bytes = 2 * part_bytes;
constexpr int left_atoms = tile_rows / atom_cols;
constexpr int right_atoms = block_cols / atom_cols;
constexpr int stage_bytes = (left_atoms + right_atoms) * atom_bytes;
constexpr int shared_bytes = stages * stage_bytes + 1024 + ring_barrier_bytes(stages);
constexpr int sums_of_a_thread = 64 * block_cols / hopper::group_threads;
constexpr int quads = sums_of_a_thread / 4;
/// Of which a thread reads and writes results together.
constexpr int join_quads = 4;

using Tiles = ProductTiles<tile_rows, tile_cols>;

struct Problem {
  Rows<float> result;
  std::int64_t m;
  std::int64_t n;
  const float* left_units;
  const float* right_units;
  float sign;
  Tiles tiles;
  std::int64_t left_part_rows;
  std::int64_t right_part_rows;
  std::int64_t right_first;
  float4* parts;  // sums of the pieces
};

/// Where the sums of a piece are kept: [tile][piece][block][group][quads][threads].
__device__ float4* part_at(const Problem& problem, std::int64_t tile, int piece, int block, int group) {
  return problem.parts +
         (((tile * problem.tiles.pieces + piece) * cluster_blocks + block) * groups + group) * quads *
             hopper::group_threads;
}

/// One thread's elements of a tile: (row, col), (row, col + 1), (row + 8, col), (row + 8, col + 1) of quad q, whose col
/// is 8·q further. That is where wgmma leaves its sums.
class Elements {
 public:
  __device__ Elements(const Problem& problem, const TilePlace& place, int block, int group, int thread) {
    const std::int64_t row = place.row * tile_rows + group * 64 + thread / 32 * 16 + thread % 32 / 4;
    const std::int64_t col = place.col * tile_cols + block * block_cols + 2 * (thread % 4);
    cols_ = static_cast<int>(min(problem.n - col, std::int64_t{block_cols}));
    right_units_ = problem.right_units + col;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      exists_[h] = row + 8 * h < problem.m;
      to_[h] = problem.result.row(row + 8 * h) + col;
      units_[h] = exists_[h] ? problem.sign * __ldg(problem.left_units + row + 8 * h) : 0.0f;
    }
  }

  /// What is there += sign · sums in their units. Nobody else adds to it meanwhile, so that the order is given.
  template <int count>
  __device__ void add(const float* sums, int first_quad) const {
    float units[count][2];
#pragma unroll
    for (int q = 0; q < count; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int col = 8 * (first_quad + q) + i;
        units[q][i] = col < cols_ ? __ldg(right_units_ + col) : 0.0f;
      }
    }
#pragma unroll
    for (int q = 0; q < count; ++q) {
      const int col = 8 * (first_quad + q);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (exists_[h] && col < cols_) {
          add_in_memory(to_[h] + col, sums[4 * q + 2 * h] * units_[h] * units[q][0],
                        sums[4 * q + 2 * h + 1] * units_[h] * units[q][1], col + 1 < cols_);
        }
      }
    }
  }

 private:
  int cols_;  // from col on
  const float* right_units_;
  bool exists_[2];
  float* to_[2];
  float units_[2];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using Ring = StageRing<stages>;
using Barriers = StageBarriers<stages>;
/// One thread: loads stage after stage.
__device__ void load_stages(const CUtensorMap& left, const CUtensorMap& right, const Problem& problem,
                            TileWork<Tiles> work, std::uint32_t memory, const Barriers& barriers, std::uint32_t block) {
  Ring ring;
  while (work.next()) {
    const auto row = static_cast<int>(work.place.row * tile_rows);
    const auto col = static_cast<int>(work.place.col * tile_cols + block * block_cols);
    for (int stage = work.begin; stage < work.end; ++stage) {
      const std::int64_t term = std::int64_t{stage} * stage_terms;
      hopper::wait_for(barriers.empty(ring.stage), ring.parity ^ 1);
      const std::uint32_t full = barriers.full(ring.stage);
      hopper::arrive_expecting(full, stage_bytes);
      const std::uint32_t to = memory + ring.stage * stage_bytes;
      for (int atom = 0; atom < left_atoms; ++atom) {
        hopper::load_box_for_blocks(to + atom * atom_bytes + block * part_bytes, left, full, row + atom * atom_cols,
                                    static_cast<int>(block * problem.left_part_rows + term), 0b11);
      }
      for (int atom = 0; atom < right_atoms; ++atom) {
        for (int part = 0; part < 2; ++part) {
          hopper::load_box(to + (left_atoms + atom) * atom_bytes + part * part_bytes, right, full,
                           col + atom * atom_cols,
                           static_cast<int>(part * problem.right_part_rows + problem.right_first + term));
        }
      }
      ring.advance();
    }
  }
}

/// One warpgroup: 64 rows of each tile.
__device__ void multiply_stages(const Problem& problem, TileWork<Tiles> work, std::uint32_t memory,
                                const Barriers& barriers, std::uint32_t block, int group) {
  const int thread = static_cast<int>(threadIdx.x) % hopper::group_threads;
  constexpr int step = 16;  // terms of one instruction
  constexpr int step_bytes = step * atom_cols * 2;
  Ring ring;
  while (work.next()) {
    float sums[sums_of_a_thread] = {};
    for (int begin = work.begin; begin < work.end; begin += sum_stages) {
      const int count = min(sum_stages, work.end - begin);
      float products[sums_of_a_thread];
      hopper::keep(products);
      int last = 0;
      for (int i = 0; i < count; ++i) {
        hopper::wait_for(barriers.full(ring.stage), ring.parity);
        const std::uint32_t from = memory + ring.stage * stage_bytes;
        const auto a = hopper::Factor::terms_in_rows<atom_cols>(from + group * atom_bytes, atom_bytes);
        const auto b = hopper::Factor::terms_in_rows<atom_cols>(from + left_atoms * atom_bytes, atom_bytes);
        hopper::begin_products();
#pragma unroll
        for (int k = 0; k < stage_terms / step; ++k) {
          const int high = k * step_bytes;
          const int low = part_bytes + high;
          hopper::multiply_rows<__half>(products, a + low, b + high, i > 0 || k > 0);
          hopper::multiply_rows<__half>(products, a + high, b + low, true);
          hopper::multiply_rows<__half>(products, a + high, b + high, true);
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
      hopper::keep(products);
      barriers.give_back(last);
#pragma unroll
      for (int i = 0; i < sums_of_a_thread; ++i) {
        sums[i] += products[i];
      }
    }
    if (work.is_whole()) {
      const Elements elements(problem, work.place, static_cast<int>(block), group, thread);
#pragma unroll
      for (int q = 0; q < quads; q += join_quads) {
        elements.add<join_quads>(&sums[4 * q], q);
      }
    } else {
      float4* const part = part_at(problem, work.tile, work.piece, static_cast<int>(block), group);
#pragma unroll
      for (int q = 0; q < quads; ++q) {
        part[q * hopper::group_threads + thread] = {sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]};
      }
    }
  }
}

#endif

__global__ void GPTQD_CLUSTER __launch_bounds__(product_threads, 1)
    multiply_tiles(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right,
                   const __grid_constant__ Problem problem) {
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
    hopper::yield_registers<32>();
    if (threadIdx.x % hopper::group_threads == 0) {
      load_stages(left, right, problem, work, aligned, barriers, block);
    }
  } else {
    hopper::claim_registers<160>();
    multiply_stages(problem, work, aligned, barriers, block, group);
  }
  __syncwarp();
  hopper::synchronize_cluster();  // the other block may still write here
#else
  __trap();  // split_product() is called on GPUs that have the instructions, in builds for them
#endif
}

constexpr int joins = quads / join_quads;

/// One block for each tile that was cut, block of it, group and a few of its quads: adds up the pieces, in order.
__global__ void __launch_bounds__(hopper::group_threads) join_pieces(const __grid_constant__ Problem problem) {
  const int first = static_cast<int>(blockIdx.x) % joins * join_quads;
  const int group = static_cast<int>(blockIdx.x) / joins % groups;
  const int block = static_cast<int>(blockIdx.x) / joins / groups % cluster_blocks;
  const std::int64_t tile = blockIdx.x / (joins * groups * cluster_blocks);
  float sums[4 * join_quads] = {};
#pragma unroll 4
  for (int piece = 0; piece < problem.tiles.pieces; ++piece) {
    const float4* const part = part_at(problem, tile, piece, block, group) + threadIdx.x;
#pragma unroll
    for (int q = 0; q < join_quads; ++q) {
      const float4 quad = part[(first + q) * hopper::group_threads];
      sums[4 * q] += quad.x;
      sums[4 * q + 1] += quad.y;
      sums[4 * q + 2] += quad.z;
      sums[4 * q + 3] += quad.w;
    }
  }
  const Elements elements(problem, problem.tiles.place_of(problem.tiles.whole + tile), block, group,
                          static_cast<int>(threadIdx.x));
  elements.add<join_quads>(sums, first);
}

CUtensorMap map_of(const ConstAnyView<2>& parts) {
  return hopper::tensor_map<atom_cols, 2>(DType::f16, parts.data, {parts.cols(), parts.rows()},
                                          {parts.stride * size_of(DType::f16)}, {atom_cols, stage_terms});
}

// Making parts. A block has 32 columns of the operand, and of a long one some terms.
constexpr int split_side = 32;
constexpr int split_rows = 8;
constexpr int split_threads = split_side * split_rows;
constexpr int warps_of_split = split_threads / 32;
/// Terms up to which one kernel does it all.
constexpr int few_terms = 128;
constexpr std::int64_t most_slices = 64;

/// peaks[c] = the largest |number| of row c, which is a column of the operand: a warp each.
__global__ void __launch_bounds__(split_threads)
    find_row_peaks(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, SplitParts out, bool packs) {
  constexpr int width = full_width<float>;
  const std::int64_t col = std::int64_t{blockIdx.x} * warps_of_split + threadIdx.x / 32;
  if (col >= cols) {
    return;
  }
  const float* const row = matrix.row(col);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float peak = 0;
  const std::int64_t packed = packs ? terms / width * width : 0;
#pragma unroll 4
  for (std::int64_t t = lane * width; t < packed; t += 32 * width) {
    const auto pack = load_pack<width>(row + t);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      peak = fmaxf(peak, fabsf(pack.values[i]));
    }
  }
  for (std::int64_t t = packed + lane; t < terms; t += 32) {
    peak = fmaxf(peak, fabsf(row[t]));
  }
  peak = reduce<32>(peak, Maximum{});
  if (lane == 0) {
    out.peaks[col] = peak;
  }
}

/// The same for columns that are columns, of a slice of the terms: a maximum is the same in any order. peaks are zeros
/// at first. Of numbers that are not negative the bits have the same order.
__global__ void __launch_bounds__(split_threads)
    find_column_peaks(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, SplitParts out) {
  __shared__ float found[split_rows][split_side];
  const std::int64_t col = std::int64_t{blockIdx.x} * split_side + threadIdx.x;
  float peak = 0;
  if (col < cols) {
#pragma unroll 8
    for (std::int64_t t = std::int64_t{blockIdx.y} * split_rows + threadIdx.y; t < terms;
         t += std::int64_t{gridDim.y} * split_rows) {
      peak = fmaxf(peak, fabsf(matrix.row(t)[col]));
    }
  }
  found[threadIdx.y][threadIdx.x] = peak;
  __syncthreads();
  if (threadIdx.y == 0 && col < cols) {
    for (int i = 1; i < split_rows; ++i) {
      peak = fmaxf(peak, found[i][threadIdx.x]);
    }
    atomicMax(reinterpret_cast<int*>(out.peaks) + col, __float_as_int(peak));
  }
}

/// Parts of the element with term t and column c; zeros for t >= terms.
template <bool transposed>
__global__ void __launch_bounds__(split_threads)
    split_matrix(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, SplitParts out) {
  __shared__ float staged[split_side][split_side + 1];
  const std::int64_t first = std::int64_t{blockIdx.x} * split_side;
  const std::int64_t col = first + threadIdx.x;
  const float scaling = col < cols ? half_scaling(out.peaks[col]) : 0.0f;
  if (blockIdx.y == 0 && threadIdx.y == 0 && col < cols) {
    out.units[col] = 1.0f / scaling;
  }
  for (std::int64_t tile = blockIdx.y; tile * split_side < out.part_rows; tile += gridDim.y) {
    const std::int64_t term = tile * split_side;
    if constexpr (transposed) {
      __syncthreads();  // the last tile has been read
      for (int i = static_cast<int>(threadIdx.y); i < split_side; i += split_rows) {
        const std::int64_t t = term + threadIdx.x;
        staged[threadIdx.x][i] = t < terms && first + i < cols ? matrix.row(first + i)[t] : 0.0f;
      }
      __syncthreads();
    }
    if (col < cols) {
      for (int i = static_cast<int>(threadIdx.y); i < split_side; i += split_rows) {
        float value = 0;
        if constexpr (transposed) {
          value = staged[i][threadIdx.x];
        } else if (term + i < terms) {
          value = matrix.row(term + i)[col];
        }
        out.store(term + i, col, value * scaling);
      }
    }
  }
}

/// Both for few terms, transposed: a block has its columns whole.
__global__ void __launch_bounds__(split_threads)
    split_short_rows(Rows<const float> matrix, int terms, std::int64_t cols, SplitParts out) {
  __shared__ float staged[split_side][few_terms + 1];
  __shared__ float peaks[split_side];
  const std::int64_t first = std::int64_t{blockIdx.x} * split_side;
  const int lane = static_cast<int>(threadIdx.x);
  constexpr int rows_a_warp = split_side / split_rows;
  constexpr int loads = few_terms / 32;
  float values[rows_a_warp][loads];
#pragma unroll
  for (int j = 0; j < rows_a_warp; ++j) {
    const int i = static_cast<int>(threadIdx.y) * rows_a_warp + j;
    const float* const row = matrix.row(min(first + i, cols - 1));
#pragma unroll
    for (int k = 0; k < loads; ++k) {
      const int t = 32 * k + lane;
      values[j][k] = t < terms && first + i < cols ? row[t] : 0.0f;
    }
  }
#pragma unroll
  for (int j = 0; j < rows_a_warp; ++j) {
    const int i = static_cast<int>(threadIdx.y) * rows_a_warp + j;
    float peak = 0;
#pragma unroll
    for (int k = 0; k < loads; ++k) {
      peak = fmaxf(peak, fabsf(values[j][k]));
      staged[i][32 * k + lane] = values[j][k];
    }
    peak = reduce<32>(peak, Maximum{});
    if (lane == 0) {
      peaks[i] = peak;
    }
  }
  __syncthreads();
  const std::int64_t col = first + lane;
  if (col >= cols) {
    return;
  }
  const float scaling = half_scaling(peaks[lane]);
  if (threadIdx.y == 0) {
    out.units[col] = 1.0f / scaling;
  }
  for (int t = static_cast<int>(threadIdx.y); t < out.part_rows; t += split_rows) {
    out.store(t, col, staged[lane][t] * scaling);
  }
}

std::int64_t part_rows_of(std::int64_t terms) {
  return divide_up(terms, SplitMatrix::stage_terms) * SplitMatrix::stage_terms;
}
/// Rows begin at multiples of 16 bytes.
std::int64_t pitch_of(std::int64_t cols) { return divide_up(cols, 8) * 8; }
/// The numbers of columns lie behind the parts.
std::int64_t parts_bytes(std::int64_t terms, std::int64_t cols) {
  return divide_up(2 * part_rows_of(terms) * pitch_of(cols) * size_of(DType::f16), 256) * 256;
}

}  // namespace

std::int64_t split_bytes(std::int64_t terms, std::int64_t cols) {
  return parts_bytes(terms, cols) + 2 * cols * size_of(DType::f32);
}

SplitMemory split_memory(std::int64_t terms, std::int64_t cols, void* memory) {
  SplitMemory result{.part_rows = part_rows_of(terms), .parts = {}, .units = nullptr, .peaks = nullptr};
  result.parts = AnyView<2>(memory, DType::f16, {2 * result.part_rows, cols}, pitch_of(cols));
  result.units = reinterpret_cast<float*>(static_cast<std::byte*>(memory) + parts_bytes(terms, cols));
  result.peaks = result.units + cols;
  return result;
}

SplitMatrix split(CudaStream& stream, const ConstTensorView<float, 2>& matrix, bool transposed, void* memory) {
  const std::int64_t terms = transposed ? matrix.cols() : matrix.rows();
  const std::int64_t cols = transposed ? matrix.rows() : matrix.cols();
  const auto result = split_memory(terms, cols, memory);
  const SplitParts parts(result);
  const Rows<const float> rows(matrix);
  const auto blocks = grid_size(divide_up(cols, split_side));
  const dim3 threads(split_side, split_rows);
  if (transposed && terms <= few_terms) {
    split_short_rows<<<blocks, threads, 0, stream.stream()>>>(rows, static_cast<int>(terms), cols, parts);
    return result.matrix();
  }
  if (transposed) {
    find_row_peaks<<<grid_size(divide_up(cols, warps_of_split)), split_threads, 0, stream.stream()>>>(
        rows, terms, cols, parts, allows_packs(full_width<float>, ConstAnyView<2>(matrix)));
  } else {
    check(cudaMemsetAsync(result.peaks, 0, static_cast<std::size_t>(cols) * sizeof(float), stream.stream()), "split");
    const dim3 grid(blocks, grid_size(divide_up(terms, 8 * split_rows), most_slices));
    find_column_peaks<<<grid, threads, 0, stream.stream()>>>(rows, terms, cols, parts);
  }
  const dim3 grid(blocks, grid_size(divide_up(result.part_rows, split_side), 65535));
  transposed ? split_matrix<true><<<grid, threads, 0, stream.stream()>>>(rows, terms, cols, parts)
             : split_matrix<false><<<grid, threads, 0, stream.stream()>>>(rows, terms, cols, parts);
  return result.matrix();
}

bool allows_split_product(const CudaStream& stream, const AnyView<2>& result) {
  const auto& gpu = stream.gpu().properties();
  return gpu.major == 9 && gpu.minor == 0 && result.dtype == DType::f32 && allows_packs(2, result);
}

void split_product(CudaStream& stream, const SplitProduct& args) {
  const std::int64_t most = stream.gpu().properties().multiProcessorCount / cluster_blocks;
  Problem problem{.result = Rows<float>(args.result),
                  .m = args.result.rows(),
                  .n = args.result.cols(),
                  .left_units = args.left.units,
                  .right_units = args.right.units,
                  .sign = args.sign,
                  .tiles = product_tiles<tile_rows, tile_cols>(args.result.rows(), args.result.cols(), args.lower,
                                                               args.left.part_rows / stage_terms, args.cut_terms, most),
                  .left_part_rows = args.left.part_rows,
                  .right_part_rows = args.right.part_rows,
                  .right_first = args.right_first,
                  .parts = nullptr};
  if (problem.tiles.cut > 0) {
    problem.parts = reinterpret_cast<float4*>(stream.scratch_of<float>(problem.tiles.part_floats()));
  }
  const auto left = map_of(args.left.parts);
  const auto right = map_of(args.right.parts);
  check(cudaFuncSetAttribute(multiply_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "giving a kernel its shared memory");
  const auto blocks = static_cast<unsigned int>(clusters_of(problem.tiles, most) * cluster_blocks);
  multiply_tiles<<<blocks, product_threads, shared_bytes, stream.stream()>>>(left, right, problem);
  if (problem.tiles.cut > 0) {
    join_pieces<<<grid_size(problem.tiles.cut * cluster_blocks * groups * joins), hopper::group_threads, 0,
                  stream.stream()>>>(problem);
  }
}

}  // namespace gptqd::cuda
