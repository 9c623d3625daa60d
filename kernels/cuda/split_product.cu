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

// Making parts. Terms are read twice: for the largest number of a column, then for the parts in its units.
constexpr int split_side = 32;
constexpr int split_rows = 8;
constexpr int split_threads = split_side * split_rows;
/// Terms up to which one kernel does it all.
constexpr int few_terms = 128;
constexpr std::int64_t most_slices = 64;

/// Parts of neighbours in a row, `values` in the columns' units.
template <int width>
__device__ void store_parts(const SplitParts& out, std::int64_t term, std::int64_t col, const float (&values)[width]) {
  Pack<std::uint16_t, width> high;
  Pack<std::uint16_t, width> low;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const __half rounded = __float2half_rn(values[i]);
    high.values[i] = __half_as_ushort(rounded);
    low.values[i] = __half_as_ushort(__float2half_rn(values[i] - __half2float(rounded)));
  }
  auto* const to = reinterpret_cast<std::uint16_t*>(out.parts.row(term) + col);
  store_pack<width>(to, high);
  store_pack<width>(to + out.part_rows * out.parts.stride, low);
}

/// peaks[c] = the largest |number| of column c, of a slice of the terms: a maximum is the same in any order. peaks are
/// zeros at first. Of numbers that are not negative the bits have the same order. A thread has `width` columns.
template <int width>
__global__ void __launch_bounds__(split_threads)
    find_column_peaks(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, SplitParts out) {
  __shared__ float found[split_rows][split_side * width];
  const std::int64_t first = std::int64_t{blockIdx.x} * split_side * width;
  const std::int64_t col = first + threadIdx.x * width;
  float peaks[width] = {};
  if (col < cols) {
#pragma unroll 8
    for (std::int64_t t = std::int64_t{blockIdx.y} * split_rows + threadIdx.y; t < terms;
         t += std::int64_t{gridDim.y} * split_rows) {
      const auto pack = load_pack<width>(matrix.row(t) + col);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        peaks[i] = fmaxf(peaks[i], fabsf(pack.values[i]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < width; ++i) {
    found[threadIdx.y][threadIdx.x * width + i] = peaks[i];
  }
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.y) * split_side + static_cast<int>(threadIdx.x);
  if (mine < split_side * width && first + mine < cols) {
    float peak = 0;
    for (int i = 0; i < split_rows; ++i) {
      peak = fmaxf(peak, found[i][mine]);
    }
    atomicMax(reinterpret_cast<int*>(out.peaks) + first + mine, __float_as_int(peak));
  }
}

/// Parts of the element with term t and column c; zeros for t >= terms. A thread has `width` columns.
template <int width>
__global__ void __launch_bounds__(split_threads)
    split_columns(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, SplitParts out) {
  const std::int64_t col = (std::int64_t{blockIdx.x} * split_side + threadIdx.x) * width;
  if (col >= cols) {
    return;
  }
  float scaling[width];
#pragma unroll
  for (int i = 0; i < width; ++i) {
    scaling[i] = half_scaling(out.peaks[col + i]);
    if (blockIdx.y == 0 && threadIdx.y == 0) {
      out.units[col + i] = 1.0f / scaling[i];
    }
  }
#pragma unroll 4
  for (std::int64_t t = std::int64_t{blockIdx.y} * split_rows + threadIdx.y; t < out.part_rows;
       t += std::int64_t{gridDim.y} * split_rows) {
    Pack<float, width> pack{};
    if (t < terms) {
      pack = load_pack<width>(matrix.row(t) + col);
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      pack.values[i] *= scaling[i];
    }
    store_parts(out, t, col, pack.values);
  }
}

// Of many terms, transposed, a block has 16 columns of the operand, which are rows of the matrix, a warp each. Of the
// terms it keeps in shared memory what two blocks of a multiprocessor have room for: one reads while the other writes.
constexpr int long_rows = 16;
constexpr int long_threads = 32 * long_rows;
/// Rows whose parts a thread stores together.
constexpr int long_pack = 8;
/// Of each long_pack rows: so that those of the next lie in the other banks.
constexpr int kept_gap = 16;

constexpr std::int64_t kept_bytes(std::int64_t kept) {
  return (long_rows * kept + long_rows / long_pack * kept_gap) * size_of(DType::f32);
}

/// @param kept  terms, a multiple of stage_terms
__global__ void __launch_bounds__(long_threads, 2)
    split_long_rows(Rows<const float> matrix, int terms, std::int64_t cols, SplitParts out, int kept, bool packs) {
  extern __shared__ __align__(16) float numbers[];
  __shared__ float scalings[long_rows];
  constexpr int width = full_width<float>;
  const std::int64_t first = std::int64_t{blockIdx.x} * long_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto begin_of = [&](int row) { return row * kept + row / long_pack * kept_gap; };
  const float* const row = matrix.row(min(first + mine, cols - 1));
  const int existing = first + mine < cols ? terms : 0;
  const int packed = packs ? existing / width * width : 0;
  const auto part_rows = static_cast<int>(out.part_rows);

  float* const own = numbers + begin_of(mine);
  const auto load = [&](int begin) {
    const int end = min(begin + kept, part_rows);
#pragma unroll 4
    for (int t = begin + lane * width; t < min(end, packed); t += 32 * width) {
      stream_in_background(reinterpret_cast<Pack<float, width>*>(own + t - begin),
                           reinterpret_cast<const Pack<float, width>*>(row + t));
    }
#pragma unroll 1
    for (int t = max(begin, packed) + lane; t < end; t += 32) {
      copy_in_background(own + t - begin, row + t, t < existing);
    }
  };
  load(0);
  float peak = 0;
  const auto count_in = [&](const Pack<float, width>& pack) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      peak = fmaxf(peak, fabsf(pack.values[i]));
    }
  };
#pragma unroll 4
  for (int t = kept + lane * width; t < packed; t += 32 * width) {
    count_in(load_pack<width>(row + t));
  }
#pragma unroll 1
  for (int t = max(kept, packed) + lane; t < existing; t += 32) {
    peak = fmaxf(peak, fabsf(row[t]));
  }
  wait_for_background_copies();
  __syncwarp();
  for (int t = lane * width; t < min(kept, part_rows); t += 32 * width) {
    count_in(load_pack<width>(own + t));
  }
  peak = reduce<32>(peak, Maximum{});
  if (lane == 0) {
    scalings[mine] = half_scaling(peak);
    if (existing > 0) {
      out.units[first + mine] = 1.0f / scalings[mine];
    }
  }
  __syncthreads();

  constexpr int across = long_rows / long_pack;
  const int group = static_cast<int>(threadIdx.x) % across;
  const std::int64_t col = first + group * long_pack;
  float scaling[long_pack];
#pragma unroll
  for (int i = 0; i < long_pack; ++i) {
    scaling[i] = scalings[group * long_pack + i];
  }
  for (int begin = 0; begin < part_rows; begin += kept) {
    if (begin > 0) {
      __syncthreads();  // the last terms have been read
      load(begin);
      wait_for_background_copies();
      __syncthreads();
    }
    const int count = min(kept, part_rows - begin);
    for (int t = static_cast<int>(threadIdx.x) / across; t < count && col < cols; t += long_threads / across) {
      const float* const from = numbers + begin_of(group * long_pack) + t;
      float values[long_pack];
#pragma unroll
      for (int i = 0; i < long_pack; ++i) {
        values[i] = from[i * kept] * scaling[i];
      }
      store_parts(out, begin + t, col, values);  // beyond the last column: rows are packs long
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

/// Columns are the matrix's rows, of more than few_terms.
void split_rows_of(CudaStream& stream, const ConstTensorView<float, 2>& matrix, const SplitParts& parts) {
  const auto& gpu = stream.gpu().properties();
  const auto room =
      std::min(gpu.sharedMemPerBlockOptin, gpu.sharedMemPerMultiprocessor / 2 - gpu.reservedSharedMemPerBlock) -
      long_rows * sizeof(float);
  const std::int64_t most = (static_cast<std::int64_t>(room) - kept_bytes(0)) / (kept_bytes(1) - kept_bytes(0));
  const std::int64_t kept = std::min(parts.part_rows, most / SplitMatrix::stage_terms * SplitMatrix::stage_terms);
  give_shared_memory(split_long_rows, static_cast<std::int64_t>(room));
  split_long_rows<<<grid_size(divide_up(matrix.rows(), long_rows)), long_threads,
                    static_cast<std::size_t>(kept_bytes(kept)), stream.stream()>>>(
      Rows<const float>(matrix), static_cast<int>(matrix.cols()), matrix.rows(), parts, static_cast<int>(kept),
      allows_packs(full_width<float>, ConstAnyView<2>(matrix)));
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
  const dim3 threads(split_side, split_rows);
  if (transposed) {
    if (terms <= few_terms) {
      split_short_rows<<<grid_size(divide_up(cols, split_side)), threads, 0, stream.stream()>>>(
          rows, static_cast<int>(terms), cols, parts);
    } else {
      split_rows_of(stream, matrix, parts);
    }
    return result.matrix();
  }
  check(cudaMemsetAsync(result.peaks, 0, static_cast<std::size_t>(cols) * sizeof(float), stream.stream()), "split");
  const auto run = [&]<int width>() {
    const auto slices = grid_size(divide_up(result.part_rows, 8 * split_rows), most_slices);
    const dim3 grid(grid_size(divide_up(cols, split_side * width)), slices);
    find_column_peaks<width><<<grid, threads, 0, stream.stream()>>>(rows, terms, cols, parts);
    split_columns<width><<<grid, threads, 0, stream.stream()>>>(rows, terms, cols, parts);
  };
  constexpr int width = full_width<float>;
  cols % width == 0 && allows_packs(width, ConstAnyView<2>(matrix)) ? run.template operator()<width>()
                                                                    : run.template operator()<1>();
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
