/// @file Sums of squares of a matrix product's elements by warp-level matrix instructions.
#include "kernels/cuda/square_products.cuh"

namespace gptqd::cuda {

namespace {

/// A tile of 128 rows and 128 columns for 8 warps, each with 32 rows and 64 columns: 2 x 8 tiles of mma.m16n8k16 (PTX
/// ISA), whose C has in thread 4·g + t of a warp the rows g and g + 8, columns 2t and 2t + 1.
constexpr int tile_rows = 128;
constexpr int tile_cols = 128;
constexpr int tile_depth = 64;
constexpr int stages = 3;
constexpr int tensor_threads = 256;
constexpr int a_bytes = 2 * tile_rows * tile_depth;
constexpr int stage_bytes = a_bytes + 2 * tile_depth * tile_cols;
constexpr int tensor_bytes = stages * stage_bytes;
constexpr int blocks_at_once = 2;  // of a multiprocessor
static_assert(SquareProducts::padding % tile_cols == 0 && SquareProducts::padding % tile_depth == 0);

/// A tile [rows, cols] of a matrix -> shared memory, 16 bytes at a time, in the background. Their places are mixed by
/// the row's number, so that the rows of one fragment lie in different banks. `from`: this thread's first 16 bytes.
template <int rows, int cols>
__device__ void copy_tile(std::uint32_t to, const __half* from, std::int64_t stride) {
  constexpr int packs = cols / 8;
  constexpr int rows_at_once = tensor_threads / packs;  // a multiple of 8: each of a thread's rows is mixed alike
  const int r = static_cast<int>(threadIdx.x) / packs;
  const int c = static_cast<int>(threadIdx.x) % packs;
  std::uint32_t at = to + 2 * (r * cols + 8 * (c ^ r % 8));
#pragma unroll
  for (int i = 0; i < rows / rows_at_once; ++i) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from));
    from += rows_at_once * stride;
    at += 2 * rows_at_once * cols;
  }
}

/// Four 8 x 8 pieces of a tile: each thread names one of their rows.
__device__ void load_pieces(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}
__device__ void load_transposed_pieces(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__global__ void __launch_bounds__(tensor_threads, blocks_at_once) square_tiles(SquareProducts problem) {
  extern __shared__ __align__(128) __half staging[];
  __shared__ double halves[tile_rows];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = warp / 2 * 32;
  const int first_col = warp % 2 * 64;
  const std::int64_t row = std::int64_t{blockIdx.x} * tile_rows;
  const std::int64_t col = std::int64_t{blockIdx.y} * tile_cols;
  // The factor is zero above its diagonal: column c begins at row c.
  const auto steps = static_cast<int>((problem.depth - col) / tile_depth);
  const int thread = static_cast<int>(threadIdx.x);
  const __half* next_a =
      problem.delta + (row + thread / (tile_depth / 8)) * problem.depth + col + thread % (tile_depth / 8) * 8;
  const __half* next_b =
      problem.factor + (col + thread / (tile_cols / 8)) * problem.width + col + thread % (tile_cols / 8) * 8;
  const std::uint32_t memory = shared_address(staging);
  const auto start = [&](int step) {
    if (step < steps) {
      const std::uint32_t a = memory + step % stages * stage_bytes;
      copy_tile<tile_rows, tile_depth>(a, next_a, problem.depth);
      copy_tile<tile_depth, tile_cols>(a + a_bytes, next_b, problem.width);
      next_a += tile_depth;
      next_b += tile_depth * problem.width;
    }
    asm volatile("cp.async.commit_group;");
  };
  float c[2][8][4] = {};
  for (int step = 0; step < stages - 1; ++step) {
    start(step);
  }
  // A thread's row of a piece is mixed by its number modulo 8, which is the lane's.
  const std::uint32_t a_row = 2 * (first_row + lane % 16) * tile_depth;
  const std::uint32_t b_row = a_bytes + 2 * (lane % 16) * tile_cols;
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2));
    __syncthreads();
    start(step + stages - 1);
    const std::uint32_t a = memory + step % stages * stage_bytes + a_row;
    const std::uint32_t b = memory + step % stages * stage_bytes + b_row;
#pragma unroll
    for (int k = 0; k < tile_depth; k += 16) {
      std::uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_pieces(left[i], a + 2 * (16 * i * tile_depth) + 16 * ((k / 8 + lane / 16) ^ lane % 8));
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        std::uint32_t right[4];
        load_transposed_pieces(right, b + 2 * k * tile_cols + 16 * ((first_col / 8 + n + lane / 16) ^ lane % 8));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply(c[i][n], left[i], right[0], right[1]);
          multiply(c[i][n + 1], left[i], right[2], right[3]);
        }
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      double sum = 0;
      for (int n = 0; n < 8; ++n) {
        for (int j = 0; j < 2; ++j) {
          const auto product = static_cast<double>(c[i][n][2 * half + j]);
          sum += product * product;
        }
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int at = first_row + 16 * i + 8 * half + lane / 4;
      if (first_col > 0 && lane % 4 == 0) {
        halves[at] = sum;
      }
      __syncthreads();
      if (first_col == 0 && lane % 4 == 0 && row + at < problem.rows) {
        problem.partial[blockIdx.y * problem.rows + row + at] = sum + halves[at];
      }
    }
  }
}

}  // namespace

SquareTiles square_tiles_mma(const CudaStream& stream) {
  return {.rows = tile_rows,
          .cols = tile_cols,
          .at_once = std::int64_t{blocks_at_once} * stream.gpu().properties().multiProcessorCount};
}

void square_products_mma(CudaStream& stream, const SquareProducts& args) {
  check(cudaFuncSetAttribute(square_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, tensor_bytes),
        "giving a kernel its shared memory");
  const dim3 grid(grid_size(divide_up(args.rows, tile_rows)), grid_size(args.width / tile_cols));
  square_tiles<<<grid, tensor_threads, tensor_bytes, stream.stream()>>>(args);
}

}  // namespace gptqd::cuda
