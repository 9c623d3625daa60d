/// @file Losses of rows: ‖δ·L‖² by one GEMM whose products are squared and summed where they arise, never stored.
///
/// fp32 operands are rounded to binary16 for the tensor cores, each row of δ and each panel of L scaled by a power of
/// two that fills its range: 11 significant bits down to 2^-28 of the largest entry. Rounding to nearest leaves a norm
/// without bias, with random errors of about 2^-12 a product, 1e-4 of a row's norm. Nothing but the record's losses
/// depends on them. What a row gets depends on that row alone, however rows are split.
#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/half_scaling.cuh"
#include "kernels/solve.hpp"

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
/// Memory for rows of δ in binary16; the rows follow one another in pieces of it, which does not show in the results.
constexpr std::int64_t most_delta_bytes = std::int64_t{256} << 20;

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

/// Matrices of whole tiles: what has no row or column in the operands is zero, or unused.
struct NormProblem {
  std::int64_t rows;
  std::int64_t depth;  // of the factor's rows
  std::int64_t width;  // of the panel
  double* partial;     // [tiles of columns, rows]
};
struct HalfProblem {
  NormProblem norms;
  std::int64_t padded_depth;
  std::int64_t padded_width;
  __half* delta;       // [rows in whole tiles, padded_depth], each row times its factor
  __half* factor;      // [padded_depth, padded_width], times half_scaling(largest)
  float* row_scaling;  // [rows]
  int* largest;        // of |L|, as the bits of a float
};

constexpr int convert_threads = 256;

/// One block a row.
__global__ void __launch_bounds__(convert_threads) convert_delta(HalfProblem problem, Rows<const float> delta) {
  const std::int64_t row = blockIdx.x;
  const float* const from = delta.row(row);
  float largest = 0;
  for (std::int64_t c = threadIdx.x; c < problem.norms.depth; c += convert_threads) {
    largest = fmaxf(largest, fabsf(from[c]));
  }
  const float factor = half_scaling(reduce<convert_threads>(largest, Maximum{}));
  __half* const to = problem.delta + row * problem.padded_depth;
  for (std::int64_t c = threadIdx.x; c < problem.padded_depth; c += convert_threads) {
    to[c] = __float2half_rn(c < problem.norms.depth ? from[c] * factor : 0.0f);
  }
  if (threadIdx.x == 0) {
    problem.row_scaling[row] = factor;
  }
}

/// The largest |entry|: of numbers that are not negative the bits have the same order, and a maximum is the same in
/// any.
__global__ void __launch_bounds__(convert_threads) find_largest(HalfProblem problem, Rows<const float> factor) {
  float largest = 0;
  for (std::int64_t r = blockIdx.x; r < problem.norms.depth; r += gridDim.x) {
    for (std::int64_t c = threadIdx.x; c < problem.norms.width; c += convert_threads) {
      largest = fmaxf(largest, fabsf(factor.row(r)[c]));
    }
  }
  largest = reduce<convert_threads>(largest, Maximum{});
  if (threadIdx.x == 0) {
    atomicMax(problem.largest, __float_as_int(largest));
  }
}

struct ConvertFactor {
  HalfProblem problem;
  Rows<const float> factor;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const bool exists = r < problem.norms.depth && c < problem.norms.width;
    problem.factor[r * problem.padded_width + c] =
        __float2half_rn(exists ? factor.row(r)[c] * half_scaling(__int_as_float(*problem.largest)) : 0.0f);
  }
};

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

/// partial[tile of columns, row] = Σ of squares in fp64.
__global__ void __launch_bounds__(tensor_threads, 2) square_products(HalfProblem problem) {
  extern __shared__ __align__(128) __half staging[];
  __shared__ double halves[tile_rows];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = warp / 2 * 32;
  const int first_col = warp % 2 * 64;
  const std::int64_t row = std::int64_t{blockIdx.x} * tile_rows;
  const std::int64_t col = std::int64_t{blockIdx.y} * tile_cols;
  // The factor is zero above its diagonal: column c begins at row c.
  const auto steps = static_cast<int>((problem.padded_depth - col) / tile_depth);
  const int thread = static_cast<int>(threadIdx.x);
  const __half* next_a =
      problem.delta + (row + thread / (tile_depth / 8)) * problem.padded_depth + col + thread % (tile_depth / 8) * 8;
  const __half* next_b =
      problem.factor + (col + thread / (tile_cols / 8)) * problem.padded_width + col + thread % (tile_cols / 8) * 8;
  const std::uint32_t memory = shared_address(staging);
  const auto start = [&](int step) {
    if (step < steps) {
      const std::uint32_t a = memory + step % stages * stage_bytes;
      copy_tile<tile_rows, tile_depth>(a, next_a, problem.padded_depth);
      copy_tile<tile_depth, tile_cols>(a + a_bytes, next_b, problem.padded_width);
      next_a += tile_depth;
      next_b += tile_depth * problem.padded_width;
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
  const double factor = static_cast<double>(half_scaling(__int_as_float(*problem.largest)));
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
      if (first_col == 0 && lane % 4 == 0 && row + at < problem.norms.rows) {
        const double unit = factor * static_cast<double>(problem.row_scaling[row + at]);
        problem.norms.partial[blockIdx.y * problem.norms.rows + row + at] = (sum + halves[at]) / (unit * unit);
      }
    }
  }
}

constexpr int plain_tile = 32;

/// The same in fp64, a product a thread.
__global__ void __launch_bounds__(plain_tile* plain_tile)
    square_products_in_f64(NormProblem problem, Rows<const double> delta, Rows<const double> factor) {
  __shared__ double a[plain_tile][plain_tile + 1];
  __shared__ double b[plain_tile][plain_tile + 1];
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const std::int64_t row = std::int64_t{blockIdx.x} * plain_tile + y;
  const std::int64_t first_col = std::int64_t{blockIdx.y} * plain_tile;
  const std::int64_t col = first_col + x;
  double product = 0;
  for (std::int64_t k = first_col; k < problem.depth; k += plain_tile) {
    a[y][x] = row < problem.rows && k + x < problem.depth ? delta.row(row)[k + x] : 0;
    b[y][x] = k + y < problem.depth && col < problem.width ? factor.row(k + y)[col] : 0;
    __syncthreads();
    for (int i = 0; i < plain_tile; ++i) {
      product = fma(a[y][i], b[i][x], product);
    }
    __syncthreads();
  }
  const double sum = reduce<32>(product * product, Plus{});
  if (x == 0 && row < problem.rows) {
    problem.partial[blockIdx.y * problem.rows + row] = sum;
  }
}

constexpr int add_threads = 256;

/// A warp a row: norms[r] += Σ partial − Σ extra·δ² over the panel's columns.
template <class T>
__global__ void __launch_bounds__(add_threads)
    add_norms(NormProblem problem, std::int64_t tiles, Rows<const T> delta, const double* extra, double* norms) {
  const std::int64_t row = (std::int64_t{blockIdx.x} * add_threads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= problem.rows) {
    return;
  }
  double sum = 0;
  for (std::int64_t c = lane; c < problem.width; c += 32) {
    const auto value = static_cast<double>(delta.row(row)[c]);
    sum -= extra[c] * value * value;
  }
  for (std::int64_t i = lane; i < tiles; i += 32) {
    sum += problem.partial[i * problem.rows + row];
  }
  sum = reduce<32>(sum, Plus{});
  if (lane == 0) {
    norms[row] += sum;
  }
}

template <class T>
void add_to_norms(CudaStream& stream, const NormProblem& problem, std::int64_t tiles, const ConstAnyView<2>& delta,
                  const double* extra, double* norms) {
  add_norms<T><<<grid_size(divide_up(problem.rows, add_threads / 32)), add_threads, 0, stream.stream()>>>(
      problem, tiles, Rows<const T>(delta), extra, norms);
}

void add_norms_in_f64(CudaStream& stream, const WeightedNormsArgs& args, const ConstAnyView<2>& delta) {
  const std::int64_t tiles = divide_up(args.factor.cols(), plain_tile);
  const NormProblem problem{delta.rows(), args.factor.rows(), args.factor.cols(),
                            stream.scratch_of<double>(tiles * delta.rows())};
  const dim3 grid(grid_size(divide_up(problem.rows, plain_tile)), grid_size(tiles));
  square_products_in_f64<<<grid, dim3(plain_tile, plain_tile), 0, stream.stream()>>>(problem, Rows<const double>(delta),
                                                                                     Rows<const double>(args.factor));
  add_to_norms<double>(stream, problem, tiles, delta, args.extra.data + args.first, args.norms.data);
}

void add_norms_by_tensor_cores(CudaStream& stream, const WeightedNormsArgs& args, const ConstAnyView<2>& delta) {
  HalfProblem problem{};
  problem.norms.depth = args.factor.rows();
  problem.norms.width = args.factor.cols();
  problem.padded_depth = round_up(problem.norms.depth, tile_cols);  // so that every tile begins inside
  problem.padded_width = round_up(problem.norms.width, tile_cols);
  constexpr std::int64_t half_bytes = sizeof(__half);
  const std::int64_t tiles = problem.padded_width / tile_cols;
  const std::int64_t piece = std::min(
      round_up(delta.rows(), tile_rows),
      std::max<std::int64_t>(1, most_delta_bytes / (problem.padded_depth * tile_rows * half_bytes)) * tile_rows);
  const std::int64_t delta_bytes = piece * problem.padded_depth * half_bytes;
  const std::int64_t factor_bytes = problem.padded_depth * problem.padded_width * half_bytes;
  const std::int64_t partial_bytes = tiles * piece * static_cast<std::int64_t>(sizeof(double));
  const std::int64_t scaling_bytes = piece * static_cast<std::int64_t>(sizeof(float));
  auto* const memory = static_cast<std::byte*>(stream.scratch(delta_bytes + factor_bytes + partial_bytes +
                                                              scaling_bytes + static_cast<std::int64_t>(sizeof(int))));
  problem.delta = reinterpret_cast<__half*>(memory);
  problem.factor = reinterpret_cast<__half*>(memory + delta_bytes);
  problem.norms.partial = reinterpret_cast<double*>(memory + delta_bytes + factor_bytes);
  problem.row_scaling = reinterpret_cast<float*>(memory + delta_bytes + factor_bytes + partial_bytes);
  problem.largest = reinterpret_cast<int*>(memory + delta_bytes + factor_bytes + partial_bytes + scaling_bytes);

  const Rows<const float> factor(args.factor);
  check(cudaMemsetAsync(problem.largest, 0, sizeof(int), stream.stream()), "weighted_norms");
  find_largest<<<grid_size(problem.norms.depth, 1024), convert_threads, 0, stream.stream()>>>(problem, factor);
  for_elements(stream, problem.padded_depth, problem.padded_width, ConvertFactor{problem, factor});
  check(cudaFuncSetAttribute(square_products, cudaFuncAttributeMaxDynamicSharedMemorySize, tensor_bytes),
        "weighted_norms");
  for (std::int64_t first = 0; first < delta.rows(); first += piece) {
    const auto part = delta.slice_rows(first, std::min(piece, delta.rows() - first));
    problem.norms.rows = part.rows();
    convert_delta<<<grid_size(part.rows()), convert_threads, 0, stream.stream()>>>(problem, Rows<const float>(part));
    const dim3 grid(grid_size(divide_up(part.rows(), tile_rows)), grid_size(tiles));
    square_products<<<grid, tensor_threads, tensor_bytes, stream.stream()>>>(problem);
    add_to_norms<float>(stream, problem.norms, tiles, part, args.extra.data + args.first, args.norms.data + first);
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const WeightedNormsArgs& args) {
  enqueue(stream, "weighted_norms", [&](CudaStream& own) {
    if (args.delta.rows() == 0) {
      return;
    }
    const auto delta = args.delta.slice_cols(args.first, args.factor.rows());
    if (args.factor.dtype == DType::f64) {
      add_norms_in_f64(own, args, delta);
    } else {
      add_norms_by_tensor_cores(own, args, delta);
    }
  });
}

}  // namespace gptqd::cuda
