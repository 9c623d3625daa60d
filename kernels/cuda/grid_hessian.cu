/// @file Clip::hessian: of 80 candidates the one with the smallest δ H_gg δᵀ.
///
/// Short groups in fp32 go to the tensor cores with split operands: δ and H are sums of two binary16 numbers each (22
/// significant bits), of the four products the three that matter are taken, and binary16 products are exact in the fp32
/// they are added in. So the errors that candidates are compared by are as good as those of an fp32 GEMM. (TF32x3 has
/// the same bits at half the speed.) δ itself is computed exactly as everywhere else. A row's candidates are multiplied
/// with the block's upper triangle alone, its diagonal halved: δ H δᵀ = 2 δ U δᵀ.
#include "kernels/cuda/grid_search.cuh"
#include "kernels/cuda/half_scaling.cuh"

namespace gptqd::cuda {

namespace {

// The fragments of mma.m16n8k16 (PTX ISA): thread 4·g + t of a warp holds of A the rows g and g + 8, columns 2t, 2t +
// 1, 2t + 8, 2t + 9; of B the rows 2t, 2t + 1, 2t + 8, 2t + 9 of column g; of C the rows g and g + 8, columns 2t and 2t
// + 1.
constexpr int step = 16;    // members a k-step
constexpr int tile = 8;     // members an n-tile
constexpr int m_rows = 16;  // candidates an m-tile
constexpr int split_warps = 8;
constexpr int split_threads = 32 * split_warps;
constexpr int rows_a_warp = 8;

/// k-steps that hold a group of `members`; 0: none does.
constexpr int steps_of(std::int64_t members) { return members <= 32 ? 2 : members <= 64 ? 4 : members <= 128 ? 8 : 0; }

/// Tiles (k-step, n-tile) of the upper triangle.
__host__ __device__ constexpr int tiles_of(int steps) { return steps * (steps + 1); }
/// The first tile of a k-step: those before have n-tiles from twice their own number on.
__host__ __device__ constexpr int first_tile(int k, int steps) { return k * (2 * steps + 1 - k); }

/// A tile of B, for one thread: two pairs of binary16 numbers of the high and the low parts.
struct SplitTile {
  std::uint32_t high[2];
  std::uint32_t low[2];
};

__device__ SplitTile load_split(const SplitTile* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return {{words.x, words.y}, {words.z, words.w}};
}

__device__ std::uint32_t pack_halves(float a, float b) {
  const __half2 both = __floats2half2_rn(a, b);
  return reinterpret_cast<const std::uint32_t&>(both);
}

/// `value` as the sum of two binary16 numbers.
struct SplitPair {
  std::uint32_t high;
  std::uint32_t low;
};
__device__ SplitPair split(float a, float b) {
  const std::uint32_t high = pack_halves(a, b);
  const float2 rounded = __half22float2(reinterpret_cast<const __half2&>(high));
  return {high, pack_halves(a - rounded.x, b - rounded.y)};
}

/// One block a group: its block of H, scaled by a power of two, as fragments [tiles, 32].
__global__ void __launch_bounds__(split_threads)
    split_blocks(const float* blocks, std::int64_t stride, std::int64_t size, GroupLists lists, int steps,
                 SplitTile* fragments) {
  const std::int64_t group = blockIdx.x;
  const float* const block = blocks + group * stride;
  const std::int64_t count = min(size, std::int64_t{lists.begin[group + 1] - lists.begin[group]});
  float largest = 0;
  for (std::int64_t i = threadIdx.x; i < count * count; i += split_threads) {
    largest = fmaxf(largest, fabsf(block[i / count * size + i % count]));
  }
  const float factor = half_scaling(reduce<split_threads>(largest, Maximum{}));
  const auto upper = [&](std::int64_t k, std::int64_t n) {
    if (k > n || n >= count) {
      return 0.0f;
    }
    const float low = block[n * size + k] * factor;
    return k == n ? 0.5f * low : 0.5f * (block[k * size + n] * factor + low);
  };
  SplitTile* const to = fragments + group * tiles_of(steps) * 32;
  for (int k = 0; k < steps; ++k) {
    const int tiles = 2 * (steps - k);
    for (int i = static_cast<int>(threadIdx.x); i < tiles * 32; i += split_threads) {
      const int lane = i % 32;
      const std::int64_t column = tile * (2 * k + i / 32) + lane / 4;
      SplitTile result;
      for (int part = 0; part < 2; ++part) {
        const std::int64_t row = step * k + 2 * (lane % 4) + 8 * part;
        const SplitPair both = split(upper(row, column), upper(row + 1, column));
        result.high[part] = both.high;
        result.low[part] = both.low;
      }
      to[first_tile(k, steps) * 32 + i] = result;
    }
  }
}

/// c += a·b.
__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  float sum[4];  // not c itself, so that a sum that begins takes its zeros from nowhere
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    c[i] = sum[i];
  }
}

/// What one row of W puts into a k-step of one m-tile: δ of two candidates and four members a thread.
struct DeltaStep {
  std::uint32_t high[4];
  std::uint32_t low[4];
  float delta[2][4];  // [candidate g or g + 8][members 2t, 2t + 1, 2t + 8, 2t + 9]

  __device__ DeltaStep(const float2& near, const float2& far, const GridRounder<float>& upper,
                       const GridRounder<float>& lower) {
    const float members[4] = {near.x, near.y, far.x, far.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      delta[0][i] = upper.error(members[i]);
      delta[1][i] = lower.error(members[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // A's registers: rows g and g + 8 of the near members, then of the far ones
      const SplitPair both = split(delta[i % 2][i / 2 * 2], delta[i % 2][i / 2 * 2 + 1]);
      high[i] = both.high;
      low[i] = both.low;
    }
  }
};

/// Memory of one warp for its row.
template <int steps>
struct WarpMemory {
  float weights[step * steps];  // scaled by a power of two, 0 behind the last member
  GridRounder<float> rounders[clip_candidates];
};

template <int steps>
constexpr int split_bytes = tiles_of(steps) * 32 * static_cast<int>(sizeof(SplitTile)) + split_warps* static_cast<int>(
                                                                                             sizeof(WarpMemory<steps>));

/// A block works on some rows of one group, whose fragments it keeps in shared memory.
template <int steps>
__global__ void __launch_bounds__(split_threads, 2)
    search_split(GridProblem<float> problem, const SplitTile* fragments) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* const tiles = reinterpret_cast<SplitTile*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto& own = reinterpret_cast<WarpMemory<steps>*>(tiles + tiles_of(steps) * 32)[warp];
  const std::int64_t group = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < tiles_of(steps) * 32; i += split_threads) {
    reinterpret_cast<uint4*>(tiles)[i] = reinterpret_cast<const uint4*>(fragments + group * tiles_of(steps) * 32)[i];
  }
  __syncthreads();
  const std::int32_t* const columns = problem.lists.columns + problem.lists.begin[group];
  const int count = min(step * steps, problem.lists.begin[group + 1] - problem.lists.begin[group]);
  const std::int64_t first_row = (std::int64_t{blockIdx.y} * split_warps + warp) * rows_a_warp;
  const std::int64_t last_row = min(problem.rows, first_row + rows_a_warp);
  for (std::int64_t row = first_row; row < last_row; ++row) {
    const float* const weights = problem.weights.row(row);
    float values[step * steps / 32];
    float low = 0;
    float high = 0;
#pragma unroll
    for (int j = 0; j < step * steps / 32; ++j) {
      values[j] = lane + 32 * j < count ? weights[columns[lane + 32 * j]] : 0.0f;
      low = values[j] < low ? values[j] : low;
      high = values[j] > high ? values[j] : high;
    }
    low = reduce<32>(low, Minimum{});
    high = -reduce<32>(-high, Minimum{});
    const float factor = half_scaling(fmaxf(-low, high));
#pragma unroll
    for (int j = 0; j < step * steps / 32; ++j) {
      own.weights[lane + 32 * j] = values[j] * factor;
    }
    const GridRange<float> range = grid_range(low, high, problem.spec);
    for (int j = lane; j < clip_candidates; j += 32) {
      const auto candidate = grid_candidate(range, j, problem.spec);
      own.rounders[j] = GridRounder<float>(candidate.scale * factor, candidate.zero, problem.highest());
    }
    __syncwarp();

    ScoredCandidate best;
    for (int m = 0; m < clip_candidates / m_rows; ++m) {
      float c[2 * steps][4] = {};
      float errors[2] = {};
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        const float* const members = &own.weights[step * k + lane % 4 * 2];
        const DeltaStep delta(*reinterpret_cast<const float2*>(members),
                              *reinterpret_cast<const float2*>(members + tile), own.rounders[m_rows * m + lane / 4],
                              own.rounders[m_rows * m + lane / 4 + 8]);
#pragma unroll
        for (int n = 2 * k; n < 2 * steps; n += 2) {  // two n-tiles at a time: products that do not wait for each other
          const SplitTile* const from = tiles + (first_tile(k, steps) + n - 2 * k) * 32 + lane;
          const SplitTile b[2] = {load_split(from), load_split(from + 32)};
          multiply(c[n], delta.high, b[0].high);
          multiply(c[n + 1], delta.high, b[1].high);
          multiply(c[n], delta.high, b[0].low);
          multiply(c[n + 1], delta.high, b[1].low);
          multiply(c[n], delta.low, b[0].high);
          multiply(c[n + 1], delta.low, b[1].high);
          if (n == 2 * k) {
            // These two n-tiles are complete, and their members are this k-step's own.
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float(&sums)[4] = c[n + j];
              errors[0] =
                  __fmaf_rn(sums[1], delta.delta[0][2 * j + 1], __fmaf_rn(sums[0], delta.delta[0][2 * j], errors[0]));
              errors[1] =
                  __fmaf_rn(sums[3], delta.delta[1][2 * j + 1], __fmaf_rn(sums[2], delta.delta[1][2 * j], errors[1]));
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float error = errors[j];
        error += __shfl_xor_sync(0xffffffffu, error, 1);
        error += __shfl_xor_sync(0xffffffffu, error, 2);
        best = BetterCandidate{}(best, {static_cast<double>(error), m_rows * m + lane / 4 + 8 * j});
      }
    }
    best = best_of_warp(best);
    if (lane == 0) {
      problem.store(row, group, grid_candidate(range, best.index, problem.spec));
    }
    __syncwarp();
  }
}

// Groups of any length, and fp64.
constexpr int plain_threads = 256;
constexpr int plain_rows = 4;
constexpr int plain_candidates = 8;  // that are tried together
constexpr int plain_items = plain_rows * plain_candidates;
constexpr int plain_depth = 32;  // members whose δ is held at once

/// A block works on plain_rows rows of one group. Products in T, their sums with δ in fp64.
template <class T>
__global__ void __launch_bounds__(plain_threads)
    search_plain(GridProblem<T> problem, const float* blocks, std::int64_t stride, std::int64_t size) {
  __shared__ GridRounder<T> rounders[plain_rows][clip_candidates];
  __shared__ T deltas[plain_depth][plain_items];
  __shared__ double errors[plain_rows][clip_candidates];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t group = blockIdx.x;
  const float* const block = blocks + group * stride;
  const std::int32_t* const columns = problem.lists.columns + problem.lists.begin[group];
  const std::int64_t count = min(size, std::int64_t{problem.lists.begin[group + 1] - problem.lists.begin[group]});
  const std::int64_t first_row = std::int64_t{blockIdx.y} * plain_rows;
  const auto weight = [&](int i, std::int64_t member) {
    return problem.weights.row(min(first_row + i, problem.rows - 1))[columns[member]];
  };

  GridRange<T> ranges[plain_rows];
#pragma unroll
  for (int i = 0; i < plain_rows; ++i) {
    T low = 0;
    T high = 0;
    for (std::int64_t k = thread; k < count; k += plain_threads) {
      const T value = weight(i, k);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    low = reduce<plain_threads>(low, Minimum{});
    high = -reduce<plain_threads>(-high, Minimum{});
    ranges[i] = grid_range(low, high, problem.spec);
    for (int j = thread; j < clip_candidates; j += plain_threads) {
      const auto candidate = grid_candidate(ranges[i], j, problem.spec);
      rounders[i][j] = GridRounder<T>(static_cast<T>(candidate.scale), candidate.zero, problem.highest());
      errors[i][j] = 0;
    }
  }
  __syncthreads();

  for (int first = 0; first < clip_candidates; first += plain_candidates) {
    for (std::int64_t base = 0; base < count; base += plain_threads) {
      const std::int64_t n = base + thread;
      T products[plain_items] = {};
      for (std::int64_t depth = 0; depth < count; depth += plain_depth) {
        const int held = static_cast<int>(min(std::int64_t{plain_depth}, count - depth));
        __syncthreads();  // the last ones have been used
        for (int i = thread; i < held * plain_items; i += plain_threads) {
          const int item = i % plain_items;
          deltas[i / plain_items][item] = rounders[item / plain_candidates][first + item % plain_candidates].error(
              weight(item / plain_candidates, depth + i / plain_items));
        }
        __syncthreads();
        for (int k = 0; n < count && k < held; ++k) {
          const T entry = static_cast<T>(block[(depth + k) * size + n]);
#pragma unroll
          for (int item = 0; item < plain_items; ++item) {
            products[item] = fma(deltas[k][item], entry, products[item]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < plain_rows; ++i) {
        const T value = n < count ? weight(i, n) : T{0};
#pragma unroll
        for (int j = 0; j < plain_candidates; ++j) {
          const double product = static_cast<double>(products[i * plain_candidates + j]);
          const double sum =
              reduce<plain_threads>(product * static_cast<double>(rounders[i][first + j].error(value)), Plus{});
          if (thread == 0) {
            errors[i][first + j] += sum;
          }
        }
      }
    }
  }
  __syncthreads();
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int i = 0; i < plain_rows; ++i) {
    if (warp == i && first_row + i < problem.rows) {
      ScoredCandidate best{errors[i][lane], lane};
      for (int j = lane + 32; j < clip_candidates; j += 32) {
        best = BetterCandidate{}(best, {errors[i][j], j});
      }
      best = best_of_warp(best);
      if (lane == 0) {
        problem.store(first_row + i, group, grid_candidate(ranges[i], best.index, problem.spec));
      }
    }
  }
}

/// Rows as far as a launch reaches; the rest follows in others.
template <class T, class Launch>
void over_rows(const GridProblem<T>& problem, std::int64_t block_rows, const Launch& launch) {
  constexpr std::int64_t most_blocks = 65535;
  for (std::int64_t first = 0; first < problem.rows; first += most_blocks * block_rows) {
    GridProblem<T> part = problem;
    part.rows = std::min(problem.rows - first, most_blocks * block_rows);
    part.weights.data += first * part.weights.stride;
    part.scales.data += first * part.scales.stride;
    part.zeros.data += first * part.zeros.stride;
    launch(part, dim3(grid_size(problem.groups), grid_size(divide_up(part.rows, block_rows))));
  }
}

template <class T>
void search_plainly(CudaStream& stream, const GridProblem<T>& problem, ConstTensorView<float, 3> blocks) {
  over_rows(problem, plain_rows, [&](const GridProblem<T>& part, dim3 grid) {
    search_plain<T><<<grid, plain_threads, 0, stream.stream()>>>(part, blocks.data, blocks.stride, blocks.shape[1]);
  });
}

}  // namespace

std::int64_t hessian_search_bytes(const FindGridsArgs& args) {
  const bool split = args.spec.clip == Clip::hessian && args.weights.dtype == DType::f32;
  const int steps = split ? steps_of(args.blocks.shape[1]) : 0;
  return args.scales.cols() * tiles_of(steps) * 32 * static_cast<std::int64_t>(sizeof(SplitTile));
}

void search_by_hessian(CudaStream& stream, const GridProblem<float>& problem, ConstTensorView<float, 3> blocks,
                       void* memory) {
  const int steps = steps_of(blocks.shape[1]);
  if (steps == 0) {
    return search_plainly(stream, problem, blocks);
  }
  auto* const fragments = static_cast<SplitTile*>(memory);
  split_blocks<<<grid_size(problem.groups), split_threads, 0, stream.stream()>>>(
      blocks.data, blocks.stride, blocks.shape[1], problem.lists, steps, fragments);
  const auto launch = [&]<int known_steps>() {
    constexpr int bytes = split_bytes<known_steps>;
    check(cudaFuncSetAttribute(search_split<known_steps>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "find_grids");
    over_rows(problem, split_warps * rows_a_warp, [&](const GridProblem<float>& part, dim3 grid) {
      search_split<known_steps><<<grid, split_threads, bytes, stream.stream()>>>(part, fragments);
    });
  };
  switch (steps) {
    case 2:
      return launch.template operator()<2>();
    case 4:
      return launch.template operator()<4>();
    default:
      return launch.template operator()<8>();
  }
}

void search_by_hessian(CudaStream& stream, const GridProblem<double>& problem, ConstTensorView<float, 3> blocks,
                       void*) {
  search_plainly(stream, problem, blocks);
}

}  // namespace gptqd::cuda
