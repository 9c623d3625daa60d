#include <cuda.h>

#include <array>
#include <limits>
#include <utility>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/promoted_product.cuh"

namespace gptqd::cuda {

namespace {

// A cluster of two thread blocks computes one tile of 192 rows by 256 columns, each its 128 columns; what both need of
// the left operand either of them loads half of, for both. Three warpgroups have 64 rows each, a fourth one loads.
constexpr int cluster_blocks = 2;
constexpr int groups = 3;
constexpr int group_threads = 128;
constexpr int product_threads = (groups + 1) * group_threads;
constexpr int tile_rows = groups * 64;
constexpr int block_cols = 128;
constexpr int tile_cols = cluster_blocks * block_cols;
/// Terms of one stage in shared memory.
constexpr int stage_terms = PromotedProduct::run_unit;
/// Stages whose terms the tensor cores sum.
constexpr int sum_stages = PromotedProduct::sum_terms / stage_terms;
constexpr int stages = 5;
/// Stages of a tile from which on a cluster's beginning costs less than a hundredth.
constexpr int long_tile_stages = 256;
/// Shared memory holds atoms: 64 columns of 64 terms, a term's columns in 128 bytes, swizzled by 8 terms.
constexpr int atom_cols = 64;
constexpr int atom_bytes = atom_cols * stage_terms * 2;
constexpr int half_atom_bytes = atom_bytes / 2;
constexpr int half_terms = stage_terms / 2;
constexpr int left_atoms = tile_rows / atom_cols;
constexpr int right_atoms = block_cols / atom_cols;
constexpr int stage_bytes = (left_atoms + right_atoms) * atom_bytes;
constexpr int shared_bytes = stages * stage_bytes + 1024 + 2 * stages * 8;
constexpr int sums_of_a_thread = 64 * block_cols / group_threads;

/// What the kernels are given.
///
/// Clusters take one tile after another, all at the same terms at about the same time, so that they find in the cache
/// what their neighbours have loaded. Tiles that do not fill the GPU once more are cut into pieces of their terms.
struct Problem {
  Rows<float> result;
  std::int64_t m;
  std::int64_t n;
  float sign;
  bool accumulate;
  bool lower;
  int tile_columns;    // tiles across
  std::int64_t whole;  // tiles that are not cut
  std::int64_t cut;    // tiles that are, after those
  int pieces;          // of each
  int run_stages;
  int tile_stages;
  TermRun run[PromotedProduct::most_runs];
  float4* parts;  // sums of the pieces
};

/// Tiles of a row of tiles: with `lower` those that reach the diagonal.
__host__ __device__ inline int tiles_of_row(bool lower, int tile_columns, int i) {
  const int reaching = (tile_rows * i + tile_rows - 1) / tile_cols + 1;
  return lower && reaching < tile_columns ? reaching : tile_columns;
}

/// A tile's place, in units of tiles.
struct TilePlace {
  std::int64_t row = 0;
  std::int64_t col = 0;
};

__device__ TilePlace place_of(const Problem& problem, std::int64_t tile) {
  int row = 0;
  auto rest = static_cast<int>(tile);
  for (int width = 0; rest >= (width = tiles_of_row(problem.lower, problem.tile_columns, row)); ++row) {
    rest -= width;
  }
  return {.row = row, .col = rest};
}

/// One cluster's work: stages [begin, end) of one tile after another.
class Work {
 public:
  __device__ Work(const Problem& problem, std::int64_t cluster, std::int64_t clusters)
      : problem_(problem), clusters_(clusters), item_(cluster - clusters) {}
  /// False when there is none left.
  __device__ bool next() {
    item_ += clusters_;
    const std::int64_t cut_item = item_ - problem_.whole;
    if (cut_item < 0) {
      place = place_of(problem_, item_);
      begin = 0;
      end = problem_.tile_stages;
      return true;
    }
    if (cut_item >= problem_.cut * problem_.pieces) {
      return false;
    }
    tile = cut_item % problem_.cut;
    piece = static_cast<int>(cut_item / problem_.cut);
    place = place_of(problem_, problem_.whole + tile);
    begin = static_cast<int>(std::int64_t{problem_.tile_stages} * piece / problem_.pieces);
    end = static_cast<int>(std::int64_t{problem_.tile_stages} * (piece + 1) / problem_.pieces);
    return true;
  }
  __device__ bool is_whole() const { return tile < 0; }

  TilePlace place;
  int begin = 0;
  int end = 0;
  std::int64_t tile = -1;  // among those that are cut, or −1
  int piece = 0;

 private:
  const Problem& problem_;
  std::int64_t clusters_;
  std::int64_t item_;
};

/// Where the sums of a piece are kept: [tile][piece][block][group][quads][threads].
__device__ float4* part_at(const Problem& problem, std::int64_t tile, int piece, int block, int group) {
  constexpr int quads = sums_of_a_thread / 4;
  return problem.parts +
         (((tile * problem.pieces + piece) * cluster_blocks + block) * groups + group) * quads * group_threads;
}

/// Element (row, col), (row, col + 1), (row + 8, col), (row + 8, col + 1) of quad q: where wgmma leaves its sums.
__device__ void store_sums(const Problem& problem, const TilePlace& place, int block, int group, int thread, int q,
                           float4 sums) {
  const int warp = thread / 32;
  const int lane = thread % 32;
  const std::int64_t col = place.col * tile_cols + block * block_cols + 8 * q + 2 * (lane % 4);
  const std::int64_t first = place.row * tile_rows + group * 64 + 16 * warp + lane / 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::int64_t row = first + 8 * h;
    if (row >= problem.m || col >= problem.n) {
      continue;
    }
    float* const to = problem.result.row(row) + col;
    float x = problem.sign * (h == 0 ? sums.x : sums.z);
    float y = problem.sign * (h == 0 ? sums.y : sums.w);
    if (col + 1 < problem.n) {
      if (problem.accumulate) {
        const auto before = *reinterpret_cast<const float2*>(to);
        x += before.x;
        y += before.y;
      }
      *reinterpret_cast<float2*>(to) = {x, y};
    } else {
      *to = problem.accumulate ? *to + x : x;
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ std::uint32_t block_in_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ void initialize_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ void wait_for(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\n"
      "bra AGAIN;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Says that products have read a stage. Nothing was written that the other block must see, so the arrival needs no
/// wider scope: releasing to the cluster would cost a barrier over all of the GPU's memory.
__device__ void arrive_at_block(std::uint32_t barrier, std::uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(block)
      : "memory");
}

/// 64 columns of 32 terms from (col, row) on.
__device__ void load_half_atom(std::uint32_t to, const CUtensorMap& from, std::int64_t col, std::int64_t row,
                               std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(&from), "r"(barrier), "r"(static_cast<int>(col)), "r"(static_cast<int>(row))
      : "memory");
}
/// The same into both blocks of the cluster.
__device__ void load_half_atom_for_both(std::uint32_t to, const CUtensorMap& from, std::int64_t col, std::int64_t row,
                                        std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(to),
      "l"(&from), "r"(barrier), "r"(static_cast<int>(col)), "r"(static_cast<int>(row)),
      "h"(static_cast<std::uint16_t>(0b11))
      : "memory");
}

/// Atoms beside one another, terms in groups of 8, columns contiguous, swizzled by 128 bytes.
__device__ std::uint64_t matrix_descriptor(std::uint32_t address) {
  constexpr std::uint64_t next_atom = atom_bytes >> 4;
  constexpr std::uint64_t next_terms = 1024 >> 4;
  constexpr std::uint64_t swizzle_128 = 1;
  return ((address & 0x3ffff) >> 4) | next_atom << 16 | next_terms << 32 | swizzle_128 << 62;
}

__device__ void begin_multiplying() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `pending` groups of products are under way.
template <int pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
__device__ void keep(float (&d)[sums_of_a_thread]) {
#pragma unroll
  for (int i = 0; i < sums_of_a_thread; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}

/// d [64, 128] <- (d) + aᵀ b over 16 terms.
template <class T>
__device__ void multiply(float (&d)[sums_of_a_thread], std::uint64_t a, std::uint64_t b, bool add) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
          "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
          "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
}

/// Stages in a ring, and which time around it is.
struct Ring {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Barriers {
  std::uint32_t first;
  __device__ std::uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ std::uint32_t empty(int stage) const { return first + 8 * (stages + stage); }
};

/// One thread: loads stage after stage.
__device__ void load_stages(const CUtensorMap& left, const CUtensorMap& right, const Problem& problem, Work work,
                            std::uint32_t memory, const Barriers& barriers, std::uint32_t block) {
  Ring ring;
  while (work.next()) {
    const std::int64_t row = work.place.row * tile_rows;
    const std::int64_t col = work.place.col * tile_cols + block * block_cols;
    for (int stage = work.begin; stage < work.end; ++stage) {
      const TermRun run = problem.run[stage / problem.run_stages];
      const std::int64_t term = std::int64_t{stage % problem.run_stages} * stage_terms;
      wait_for(barriers.empty(ring.stage), ring.parity ^ 1);
      const std::uint32_t full = barriers.full(ring.stage);
      arrive_expecting(full, stage_bytes);
      const std::uint32_t to = memory + ring.stage * stage_bytes;
      const std::uint32_t mine = block * half_atom_bytes;
      for (int atom = 0; atom < left_atoms; ++atom) {
        load_half_atom_for_both(to + atom * atom_bytes + mine, left, row + atom * atom_cols,
                                run.a + term + block * half_terms, full);
      }
      for (int atom = 0; atom < right_atoms; ++atom) {
        for (int half = 0; half < 2; ++half) {
          load_half_atom(to + (left_atoms + atom) * atom_bytes + half * half_atom_bytes, right, col + atom * atom_cols,
                         run.b + term + half * half_terms, full);
        }
      }
      ring.advance();
    }
  }
}

/// One warpgroup: 64 rows of each tile.
template <class T>
__device__ void multiply_stages(const Problem& problem, Work work, std::uint32_t memory, const Barriers& barriers,
                                std::uint32_t block, int group) {
  const int thread = static_cast<int>(threadIdx.x) % group_threads;
  Ring ring;
  const auto give_back = [&](int stage) {
    if (thread % 32 < cluster_blocks) {
      arrive_at_block(barriers.empty(stage), thread % 32);
    }
  };
  while (work.next()) {
    float sums[sums_of_a_thread] = {};
    for (int begin = work.begin; begin < work.end; begin += sum_stages) {
      const int count = min(sum_stages, work.end - begin);
      float products[sums_of_a_thread];
      keep(products);
      int last = 0;
      for (int i = 0; i < count; ++i) {
        wait_for(barriers.full(ring.stage), ring.parity);
        const std::uint32_t from = memory + ring.stage * stage_bytes;
        const std::uint64_t a = matrix_descriptor(from + group * atom_bytes);
        const std::uint64_t b = matrix_descriptor(from + left_atoms * atom_bytes);
        begin_multiplying();
#pragma unroll
        for (int k = 0; k < stage_terms / 16; ++k) {
          multiply<T>(products, a + k * (2048 >> 4), b + k * (2048 >> 4), i > 0 || k > 0);
        }
        commit_products();
        if (i > 0) {
          wait_for_products<1>();
          give_back(last);
        }
        last = ring.stage;
        ring.advance();
      }
      wait_for_products<0>();
      keep(products);
      give_back(last);
#pragma unroll
      for (int i = 0; i < sums_of_a_thread; ++i) {
        sums[i] += products[i];
      }
    }
    float4* const part = work.is_whole() ? nullptr : part_at(problem, work.tile, work.piece, block, group);
#pragma unroll
    for (int q = 0; q < sums_of_a_thread / 4; ++q) {
      const float4 quad{sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]};
      if (part == nullptr) {
        store_sums(problem, work.place, block, group, thread, q, quad);
      } else {
        part[q * group_threads + thread] = quad;
      }
    }
  }
}

#endif

template <class T>
__global__ void __cluster_dims__(cluster_blocks, 1, 1) __launch_bounds__(product_threads, 1)
    multiply_tiles(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right,
                   const __grid_constant__ Problem problem) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte memory[];
  const std::uint32_t aligned = (shared_address(memory) + 1023) / 1024 * 1024;
  const Barriers barriers{aligned + stages * stage_bytes};
  const std::uint32_t block = block_in_cluster();
  const int group = static_cast<int>(threadIdx.x) / group_threads;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      initialize_barrier(barriers.full(stage), 1);
      initialize_barrier(barriers.empty(stage), cluster_blocks * groups * group_threads / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  synchronize_cluster();
  const Work work(problem, blockIdx.x / cluster_blocks, gridDim.x / cluster_blocks);
  if (group == groups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (threadIdx.x % group_threads == 0) {
      load_stages(left, right, problem, work, aligned, barriers, block);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    multiply_stages<T>(problem, work, aligned, barriers, block, group);
  }
  __syncwarp();
  synchronize_cluster();  // the other block may still write here
#else
  __trap();  // promoted_product() is called on GPUs that have the instructions, in builds for them
#endif
}

constexpr int join_quads = 4;
constexpr int joins = sums_of_a_thread / 4 / join_quads;

/// One block for each tile that was cut, block of it, group and a few of its quads: adds up the pieces, in order.
__global__ void __launch_bounds__(group_threads) join_pieces(const __grid_constant__ Problem problem) {
  const int first = static_cast<int>(blockIdx.x) % joins * join_quads;
  const int group = static_cast<int>(blockIdx.x) / joins % groups;
  const int block = static_cast<int>(blockIdx.x) / joins / groups % cluster_blocks;
  const std::int64_t tile = blockIdx.x / (joins * groups * cluster_blocks);
  float4 sums[join_quads] = {};
#pragma unroll 4
  for (int piece = 0; piece < problem.pieces; ++piece) {
    const float4* const part = part_at(problem, tile, piece, block, group) + threadIdx.x;
#pragma unroll
    for (int q = 0; q < join_quads; ++q) {
      const float4 quad = part[(first + q) * group_threads];
      sums[q].x += quad.x;
      sums[q].y += quad.y;
      sums[q].z += quad.z;
      sums[q].w += quad.w;
    }
  }
  const TilePlace place = place_of(problem, problem.whole + tile);
#pragma unroll
  for (int q = 0; q < join_quads; ++q) {
    store_sums(problem, place, block, group, static_cast<int>(threadIdx.x), first + q, sums[q]);
  }
}

/// In how many pieces to cut `tiles` tiles that `clusters` clusters do not do in whole rounds: what takes least time,
/// counted in stages. A piece costs a few stages to begin and end, its sums' way through memory their share of one.
int choose_pieces(std::int64_t tiles, std::int64_t clusters, std::int64_t stages_of_tile) {
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

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

/// The driver's function: the runtime knows where it is, so that nothing links against the driver.
EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "asking the driver for cuTensorMapEncodeTiled");
  require(found == cudaDriverEntryPointSuccess && function != nullptr,
          "CUDA: the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or later");
  return reinterpret_cast<EncodeTiled>(function);
}

CUtensorMap tensor_map(EncodeTiled encode, const ConstAnyView<2>& matrix) {
  CUtensorMap map{};
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(matrix.cols()), static_cast<cuuint64_t>(matrix.rows())};
  const std::int64_t pitch = matrix.rows() == 1 ? divide_up(matrix.cols(), 8) * 8 : matrix.stride;
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch * size_of(matrix.dtype))};
  const cuuint32_t box[2] = {atom_cols, half_terms};
  const cuuint32_t steps[2] = {1, 1};
  const auto status =
      encode(&map, matrix.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
             const_cast<void*>(matrix.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, fmt::format("CUDA, describing a matrix {} with rows {} elements apart: error {}",
                                              to_string(matrix.shape), matrix.stride, static_cast<int>(status)));
  return map;
}

}  // namespace

bool allows_split_product(const CudaStream& stream, const AnyView<2>& result) {
  const auto& gpu = stream.gpu().properties();
  return gpu.major == 9 && gpu.minor == 0 && result.dtype == DType::f32 && allows_packs(2, result);
}

bool allows_promoted_product(const CudaStream& stream, const ConstAnyView<2>& left, const ConstAnyView<2>& right,
                             const AnyView<2>& result) {
  constexpr int map_width = 8;  // 16 bytes
  return (left.dtype == DType::f16 || left.dtype == DType::bf16) && allows_packs(map_width, left, right) &&
         allows_split_product(stream, result);
}

void promoted_product(CudaStream& stream, const PromotedProduct& args) {
  const std::int64_t m = args.result.rows();
  const std::int64_t n = args.result.cols();
  Problem problem{.result = Rows<float>(args.result),
                  .m = m,
                  .n = n,
                  .sign = args.sign,
                  .accumulate = args.accumulate,
                  .lower = args.lower,
                  .tile_columns = static_cast<int>(divide_up(n, tile_cols)),
                  .whole = 0,
                  .cut = 0,
                  .pieces = 1,
                  .run_stages = static_cast<int>(divide_up(args.run_rows, stage_terms)),
                  .tile_stages = 0,
                  .run = {},
                  .parts = nullptr};
  problem.tile_stages = args.runs * problem.run_stages;
  std::copy_n(args.run, args.runs, problem.run);
  for (int i = 0; i < divide_up(m, tile_rows); ++i) {
    problem.whole += tiles_of_row(problem.lower, problem.tile_columns, i);
  }
  const std::int64_t most = stream.gpu().properties().multiProcessorCount / cluster_blocks;
  if (const std::int64_t rest = problem.whole % most; args.cut_terms && rest > 0) {
    problem.pieces = choose_pieces(rest, most, problem.tile_stages);
    if (problem.pieces > 1) {
      problem.cut = rest;
      problem.whole -= rest;
      problem.parts = stream.scratch_of<float4>(rest * problem.pieces * tile_rows * tile_cols / 4);
    }
  }
  // Long tiles have a cluster each, so that those wait for room alone that find none: other streams' kernels may hold
  // some multiprocessors. For short ones a cluster's beginning would cost too much.
  const std::int64_t items = problem.whole + problem.cut * problem.pieces;
  const std::int64_t clusters = problem.tile_stages >= long_tile_stages ? items : std::min(most, items);
  static const EncodeTiled encode = find_encode_tiled();
  const auto left = tensor_map(encode, args.left);
  const auto right = tensor_map(encode, args.right);
  const auto launch = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "giving a kernel its shared memory");
    kernel<<<static_cast<unsigned int>(clusters * cluster_blocks), product_threads, shared_bytes, stream.stream()>>>(
        left, right, problem);
  };
  args.left.dtype == DType::f16 ? launch(multiply_tiles<__half>) : launch(multiply_tiles<__nv_bfloat16>);
  if (problem.cut > 0) {
    join_pieces<<<grid_size(problem.cut * cluster_blocks * groups * joins), group_threads, 0, stream.stream()>>>(
        problem);
  }
}

namespace {

constexpr int split_side = 32;
constexpr int split_rows = 8;

/// parts[p · part_rows + t, c] of the matrix element with term t and column c; zeros for t >= terms.
template <bool transposed>
__global__ void __launch_bounds__(split_side* split_rows)
    split_matrix(Rows<const float> matrix, std::int64_t terms, std::int64_t cols, std::int64_t part_rows,
                 Rows<__nv_bfloat16> parts) {
  __shared__ float staged[split_side][split_side + 1];
  const std::int64_t col = std::int64_t{blockIdx.x} * split_side;
  for (std::int64_t tile = blockIdx.y; tile * split_side < part_rows; tile += gridDim.y) {
    const std::int64_t term = tile * split_side;
    __syncthreads();  // the last tile has been read
    for (int i = static_cast<int>(threadIdx.y); i < split_side; i += split_rows) {
      if constexpr (transposed) {
        const std::int64_t t = term + threadIdx.x;
        staged[threadIdx.x][i] = t < terms && col + i < cols ? matrix.row(col + i)[t] : 0.0f;
      } else {
        const std::int64_t c = col + threadIdx.x;
        staged[i][threadIdx.x] = term + i < terms && c < cols ? matrix.row(term + i)[c] : 0.0f;
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y); i < split_side; i += split_rows) {
      if (col + threadIdx.x < cols) {
        float rest = staged[i][threadIdx.x];
        for (int part = 0; part < SplitMatrix::count; ++part) {
          const __nv_bfloat16 rounded = __float2bfloat16_rn(rest);
          parts.row(part * part_rows + term + i)[col + threadIdx.x] = rounded;
          rest -= __bfloat162float(rounded);
        }
      }
    }
  }
}

std::int64_t split_part_rows(std::int64_t terms) {
  return divide_up(terms, std::int64_t{PromotedProduct::run_unit}) * PromotedProduct::run_unit;
}
std::int64_t split_pitch(std::int64_t cols) { return divide_up(cols, 8) * 8; }

}  // namespace

std::int64_t split_bytes(std::int64_t terms, std::int64_t cols) {
  return SplitMatrix::count * split_part_rows(terms) * split_pitch(cols) * size_of(DType::bf16);
}

SplitMatrix split(CudaStream& stream, const ConstTensorView<float, 2>& matrix, bool transposed, void* memory) {
  const std::int64_t terms = transposed ? matrix.cols() : matrix.rows();
  const std::int64_t cols = transposed ? matrix.rows() : matrix.cols();
  SplitMatrix result{.part_rows = split_part_rows(terms), .parts = {}};
  result.parts = AnyView<2>(memory, DType::bf16, {SplitMatrix::count * result.part_rows, cols}, split_pitch(cols));
  const dim3 grid(grid_size(divide_up(cols, split_side)), grid_size(divide_up(result.part_rows, split_side), 65535));
  const dim3 block(split_side, split_rows);
  const Rows<__nv_bfloat16> parts(AnyView<2>(memory, DType::bf16, result.parts.shape, result.parts.stride));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, block, 0, stream.stream()>>>(Rows<const float>(matrix), terms, cols, result.part_rows, parts);
  };
  transposed ? launch(split_matrix<true>) : launch(split_matrix<false>);
  return result;
}

void split_product(CudaStream& stream, const SplitProduct& args) {
  // Of nine products the six whose share is at least that of fp32's last bit, the small ones first.
  constexpr std::array<std::pair<int, int>, PromotedProduct::most_runs> pairs{
      {{1, 1}, {2, 0}, {0, 2}, {1, 0}, {0, 1}, {0, 0}}};
  PromotedProduct product{.left = args.left.parts,
                          .right = args.right.parts,
                          .run_rows = args.left.part_rows,
                          .runs = PromotedProduct::most_runs,
                          .run = {},
                          .result = args.result,
                          .sign = args.sign,
                          .accumulate = true,
                          .lower = args.lower,
                          .cut_terms = args.cut_terms};
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    product.run[i] = {.a = pairs[i].first * args.left.part_rows,
                      .b = pairs[i].second * args.right.part_rows + args.right_first};
  }
  promoted_product(stream, product);
}

}  // namespace gptqd::cuda
