/// @file Losses of rows: ‖δ·L‖² by one GEMM whose products are squared and summed where they arise, never stored.
///
/// fp32 operands are rounded to binary16 for the tensor cores, each row of δ and each panel of L scaled by a power of
/// two that fills its range: 11 significant bits down to 2^-28 of the largest entry. Rounding to nearest leaves a norm
/// without bias, with random errors of about 2^-12 a product, 1e-4 of a row's norm. Nothing but the record's losses
/// depends on them. What a row gets depends on that row alone, however rows are split.
#include <limits>
#include <vector>

#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/half_scaling.cuh"
#include "kernels/cuda/square_products.cuh"
#include "kernels/solve.hpp"

namespace gptqd::cuda {

namespace {

/// Memory for rows of δ in binary16; the rows follow one another in pieces of it, which does not show in the results.
constexpr std::int64_t most_delta_bytes = std::int64_t{256} << 20;

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

/// Numbers that a thread loads together.
constexpr int width = full_width<float>;
using Numbers = Pack<float, width>;

/// Numbers from column c on, zeros from `end` on. @pre with packs: aligned, and c and end are multiples of the width
template <bool packs>
__device__ Numbers load_numbers(const float* row, std::int64_t c, std::int64_t end) {
  Numbers numbers{};
  if constexpr (packs) {
    if (c < end) {
      numbers = load_pack<width>(row + c);
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (c + i < end) {
        numbers.values[i] = row[c + i];
      }
    }
  }
  return numbers;
}
bool loads_packs(const ConstAnyView<2>& matrix) { return allows_packs(width, matrix) && matrix.cols() % width == 0; }

__device__ float largest_of(const Numbers& numbers, float largest) {
#pragma unroll
  for (const float number : numbers.values) {
    largest = fmaxf(largest, fabsf(number));
  }
  return largest;
}
__device__ void scale_to_half(__half* to, const Numbers& numbers, float factor) {
#pragma unroll
  for (int i = 0; i < width; ++i) {
    to[i] = __float2half_rn(numbers.values[i] * factor);
  }
}

/// Rows of δ on their way into binary16.
struct DeltaRows {
  Rows<const float> delta;
  std::int64_t depth;
  std::int64_t panel_cols;
  const double* extra;  // of the panel's columns
  double* norms;
  float* scaling;
  __half* to;
  std::int64_t padded_depth;
};

/// Loads of one thread that are under way at the same time.
constexpr int loads = 8;

/// One block a row: to[r] = delta[r]·scaling[r], zeros behind its end; norms[r] −= Σ extra·δ². The last chunk of a row
/// stays in registers, so that one of that length is read once.
template <int threads, bool packs>
__global__ void __launch_bounds__(threads) convert_delta(DeltaRows rows) {
  constexpr int step = threads * width;
  constexpr std::int64_t chunk = loads * step;
  static_assert(chunk % SquareProducts::padding == 0);
  const std::int64_t row = blockIdx.x;
  const float* const from = rows.delta.row(row);
  const int first = static_cast<int>(threadIdx.x) * width;
  Numbers numbers[loads];
  const auto load = [&](std::int64_t begin) {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      numbers[i] = load_numbers<packs>(from, begin + i * step + first, rows.depth);
    }
  };
  float largest = 0;
  std::int64_t begin = 0;
  while (true) {
    load(begin);
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      largest = largest_of(numbers[i], largest);
    }
    if (begin + chunk >= rows.depth) {
      break;
    }
    begin += chunk;
  }
  const float factor = half_scaling(reduce<threads>(largest, Maximum{}));
  __half* const to = rows.to + row * rows.padded_depth;
  while (true) {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      if (const std::int64_t c = begin + i * step + first; c < rows.padded_depth) {
        Pack<__half, width> halves;
        scale_to_half(halves.values, numbers[i], factor);
        store_pack(to + c, halves);
      }
    }
    if (begin == 0) {
      break;
    }
    begin -= chunk;
    load(begin);
  }
  // The panel's columns were the last ones in use.
  double damped = 0;
#pragma unroll 4
  for (std::int64_t c = threadIdx.x; c < rows.panel_cols; c += threads) {
    const auto number = static_cast<double>(from[c]);
    damped += rows.extra[c] * number * number;
  }
  damped = reduce<threads>(damped, Plus{});
  if (threadIdx.x == 0) {
    rows.scaling[row] = factor;
    rows.norms[row] -= damped;
  }
}

template <bool packs>
void convert_delta_rows(CudaStream& stream, const DeltaRows& rows, std::int64_t count) {
  const auto run = [&]<int threads>() {
    convert_delta<threads, packs><<<grid_size(count), threads, 0, stream.stream()>>>(rows);
  };
  if (rows.depth <= loads * 128 * width) {
    run.template operator()<128>();
  } else if (rows.depth <= loads * 512 * width) {
    run.template operator()<512>();
  } else {
    run.template operator()<1024>();
  }
}

/// A panel of L on its way into binary16. Above the tiles on the diagonal it is not needed.
struct FactorPanel {
  Rows<const float> factor;
  std::int64_t depth;
  std::int64_t cols;
  __half* to;
  std::int64_t padded_depth;
  std::int64_t padded_cols;
  std::int64_t tile_cols;
  int* largest;  // |entry|, as the bits of a float: of numbers that are not negative these have the same order
};

constexpr int factor_threads = 256;
/// Blocks of them that take rows in turn.
constexpr std::int64_t factor_blocks = 1024;

template <bool packs>
__global__ void __launch_bounds__(factor_threads) find_largest(FactorPanel panel) {
  float largest = 0;
  for (std::int64_t r = blockIdx.x; r < panel.depth; r += gridDim.x) {
    const std::int64_t end = min(panel.cols, r + 1);
    for (std::int64_t c = threadIdx.x * width; c < end; c += factor_threads * width) {
      largest = largest_of(load_numbers<packs>(panel.factor.row(r), c, panel.cols), largest);
    }
  }
  largest = reduce<factor_threads>(largest, Maximum{});
  if (threadIdx.x == 0) {
    atomicMax(panel.largest, __float_as_int(largest));
  }
}

/// to = L·half_scaling(largest).
template <bool packs>
__global__ void __launch_bounds__(factor_threads) convert_factor(FactorPanel panel) {
  constexpr int half_width = full_width<__half>;
  const float factor = half_scaling(__int_as_float(*panel.largest));
  for (std::int64_t r = blockIdx.x; r < panel.padded_depth; r += gridDim.x) {
    const std::int64_t cols = r < panel.depth ? panel.cols : 0;
    const std::int64_t end = min(panel.padded_cols, (r / panel.tile_cols + 1) * panel.tile_cols);
    for (std::int64_t c = threadIdx.x * half_width; c < end; c += factor_threads * half_width) {
      Pack<__half, half_width> halves;
#pragma unroll
      for (int i = 0; i < half_width; i += width) {
        scale_to_half(halves.values + i, load_numbers<packs>(panel.factor.row(r), c + i, cols), factor);
      }
      store_pack(panel.to + r * panel.padded_cols + c, halves);
    }
  }
}

template <bool packs>
void convert_factor_panel(CudaStream& stream, const FactorPanel& panel) {
  const auto blocks = grid_size(panel.padded_depth, factor_blocks);
  find_largest<packs><<<blocks, factor_threads, 0, stream.stream()>>>(panel);
  convert_factor<packs><<<blocks, factor_threads, 0, stream.stream()>>>(panel);
}

constexpr int add_threads = 256;

/// norms[r] += Σ partial, in the units of δ and L.
__global__ void __launch_bounds__(add_threads)
    add_squares(SquareProducts products, std::int64_t tiles, const float* scaling, const int* largest, double* norms) {
  const std::int64_t row = std::int64_t{blockIdx.x} * add_threads + threadIdx.x;
  if (row >= products.rows) {
    return;
  }
  double sum = 0;
  for (std::int64_t i = 0; i < tiles; ++i) {
    sum += products.partial[i * products.rows + row];
  }
  const double unit = static_cast<double>(half_scaling(__int_as_float(*largest))) * static_cast<double>(scaling[row]);
  norms[row] += sum / (unit * unit);
}

/// Rows whose products are formed together: whole tiles, few enough for the memory, so many that the GPU computes all
/// rows in the fewest rounds.
std::int64_t rows_of_piece(std::int64_t rows, std::int64_t row_bytes, std::int64_t tiles_across,
                           const SquareTiles& tiles) {
  const std::int64_t all = divide_up(rows, tiles.rows);
  const std::int64_t most = std::clamp<std::int64_t>(most_delta_bytes / (tiles.rows * row_bytes), 1, all);
  constexpr std::int64_t round_cost = 16;  // of what a piece's beginning costs
  std::int64_t best = most;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t count = most; count > 0; --count) {
    const auto rounds = [&](std::int64_t rows_of_tiles) {
      return divide_up(rows_of_tiles * tiles_across, tiles.at_once);
    };
    const std::int64_t cost = (all / count * rounds(count) + rounds(all % count)) * round_cost + divide_up(all, count);
    if (cost < least) {
      least = cost;
      best = count;
    }
  }
  return best * tiles.rows;
}

void add_norms_by_tensor_cores(CudaStream& stream, const WeightedNormsArgs& args) {
  const bool wgmma = allows_square_products_wgmma(stream);
  const SquareTiles tiles = wgmma ? square_tiles_wgmma(stream) : square_tiles_mma(stream);
  const std::int64_t depth = args.factor.rows();
  const std::int64_t cols = args.factor.cols();
  SquareProducts products;
  products.depth = round_up(depth, SquareProducts::padding);
  products.width = round_up(cols, SquareProducts::padding);
  const std::int64_t tiles_across = divide_up(products.width, tiles.cols);
  const std::int64_t row_bytes = products.depth * size_of(DType::f16);

  std::vector<NormRows> pieces;
  std::int64_t most_rows = 0;
  for (const auto& rows : args.rows) {
    const std::int64_t count = rows.delta.rows();
    const std::int64_t piece = count > 0 ? rows_of_piece(count, row_bytes, tiles_across, tiles) : 0;
    most_rows = std::max(most_rows, piece);
    for (std::int64_t first = 0; first < count; first += piece) {
      const std::int64_t taken = std::min(piece, count - first);
      pieces.push_back({.delta = rows.delta.slice_rows(first, taken), .norms = rows.norms.slice_rows(first, taken)});
    }
  }
  if (pieces.empty()) {
    return;
  }

  // Each a multiple of 256 bytes.
  const std::int64_t delta_bytes = most_rows * row_bytes;
  const std::int64_t factor_bytes = products.depth * products.width * size_of(DType::f16);
  const std::int64_t partial_bytes = tiles_across * most_rows * size_of(DType::f64);
  const std::int64_t scaling_bytes = most_rows * size_of(DType::f32);
  const std::int64_t count_bytes = (1 + std::ssize(pieces)) * static_cast<std::int64_t>(sizeof(int));
  auto* memory =
      static_cast<std::byte*>(stream.scratch(delta_bytes + factor_bytes + partial_bytes + scaling_bytes + count_bytes));
  products.delta = reinterpret_cast<__half*>(memory);
  products.factor = reinterpret_cast<__half*>(memory += delta_bytes);
  products.partial = reinterpret_cast<double*>(memory += factor_bytes);
  auto* const scaling = reinterpret_cast<float*>(memory += partial_bytes);
  auto* const largest = reinterpret_cast<int*>(memory += scaling_bytes);
  products.taken = largest + 1;
  check(cudaMemsetAsync(largest, 0, static_cast<std::size_t>(count_bytes), stream.stream()), "weighted_norms");

  const FactorPanel panel{.factor = Rows<const float>(args.factor),
                          .depth = depth,
                          .cols = cols,
                          .to = products.factor,
                          .padded_depth = products.depth,
                          .padded_cols = products.width,
                          .tile_cols = tiles.cols,
                          .largest = largest};
  loads_packs(args.factor) ? convert_factor_panel<true>(stream, panel) : convert_factor_panel<false>(stream, panel);
  for (const auto& piece : pieces) {
    products.rows = piece.delta.rows();
    const auto delta = piece.delta.slice_cols(args.first, depth);
    const DeltaRows rows{.delta = Rows<const float>(delta),
                         .depth = depth,
                         .panel_cols = cols,
                         .extra = args.extra.data + args.first,
                         .norms = piece.norms.data,
                         .scaling = scaling,
                         .to = products.delta,
                         .padded_depth = products.depth};
    loads_packs(delta) ? convert_delta_rows<true>(stream, rows, products.rows)
                       : convert_delta_rows<false>(stream, rows, products.rows);
    wgmma ? square_products_wgmma(stream, products) : square_products_mma(stream, products);
    add_squares<<<grid_size(divide_up(products.rows, add_threads)), add_threads, 0, stream.stream()>>>(
        products, tiles_across, scaling, largest, piece.norms.data);
    ++products.taken;
  }
}

constexpr int plain_tile = 32;

/// Of the problem in fp64.
struct PlainProblem {
  Rows<const double> delta;
  Rows<const double> factor;
  std::int64_t rows;
  std::int64_t depth;
  std::int64_t cols;
  const double* extra;  // of the panel's columns
  double* partial;      // [tiles of columns, rows]
  double* norms;
};

/// partial[tile, row] = Σ of squares of products, a product a thread.
__global__ void __launch_bounds__(plain_tile* plain_tile) square_products_in_f64(PlainProblem problem) {
  __shared__ double a[plain_tile][plain_tile + 1];
  __shared__ double b[plain_tile][plain_tile + 1];
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const std::int64_t row = std::int64_t{blockIdx.x} * plain_tile + y;
  const std::int64_t first_col = std::int64_t{blockIdx.y} * plain_tile;
  const std::int64_t col = first_col + x;
  double product = 0;
  for (std::int64_t k = first_col; k < problem.depth; k += plain_tile) {
    a[y][x] = row < problem.rows && k + x < problem.depth ? problem.delta.row(row)[k + x] : 0;
    b[y][x] = k + y < problem.depth && col < problem.cols ? problem.factor.row(k + y)[col] : 0;
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

/// A warp a row: norms[r] += Σ partial − Σ extra·δ².
__global__ void __launch_bounds__(add_threads) add_norms(PlainProblem problem, std::int64_t tiles) {
  const std::int64_t row = (std::int64_t{blockIdx.x} * add_threads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= problem.rows) {
    return;
  }
  double sum = 0;
  for (std::int64_t c = lane; c < problem.cols; c += 32) {
    const double value = problem.delta.row(row)[c];
    sum -= problem.extra[c] * value * value;
  }
  for (std::int64_t i = lane; i < tiles; i += 32) {
    sum += problem.partial[i * problem.rows + row];
  }
  sum = reduce<32>(sum, Plus{});
  if (lane == 0) {
    problem.norms[row] += sum;
  }
}

void add_norms_in_f64(CudaStream& stream, const WeightedNormsArgs& args) {
  const std::int64_t tiles = divide_up(args.factor.cols(), plain_tile);
  for (const auto& rows : args.rows) {
    if (rows.delta.rows() == 0) {
      continue;
    }
    const PlainProblem problem{.delta = Rows<const double>(rows.delta.slice_cols(args.first, args.factor.rows())),
                               .factor = Rows<const double>(args.factor),
                               .rows = rows.delta.rows(),
                               .depth = args.factor.rows(),
                               .cols = args.factor.cols(),
                               .extra = args.extra.data + args.first,
                               .partial = stream.scratch_of<double>(tiles * rows.delta.rows()),
                               .norms = rows.norms.data};
    const dim3 grid(grid_size(divide_up(problem.rows, plain_tile)), grid_size(tiles));
    square_products_in_f64<<<grid, dim3(plain_tile, plain_tile), 0, stream.stream()>>>(problem);
    add_norms<<<grid_size(divide_up(problem.rows, add_threads / 32)), add_threads, 0, stream.stream()>>>(problem,
                                                                                                         tiles);
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const WeightedNormsArgs& args) {
  enqueue(stream, "weighted_norms", [&](CudaStream& own) {
    args.factor.dtype == DType::f64 ? add_norms_in_f64(own, args) : add_norms_by_tensor_cores(own, args);
  });
}

}  // namespace gptqd::cuda
