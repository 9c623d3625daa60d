/// @file Clip::hessian: of 80 candidates the one with the smallest δ H_gg δᵀ.
///
/// Short groups in fp32 go to the tensor cores. H = vᵀv + R, v the column of the largest diagonal entry over that
/// entry's root, so that R has nothing left there: what strongly correlated channels have in common, or a massive
/// channel, goes into (δ vᵀ)², computed in fp32, and not into products whose terms would cancel. δ R δᵀ = 2 δ U δᵀ with
/// the upper triangle U, its diagonal halved. δ and U are sums of two binary16 numbers each (22 significant bits), of
/// the four products the three that matter are taken, and binary16 products are exact in the fp32 they are added in. So
/// the errors that candidates are compared by are as good as those of an fp32 GEMM. (TF32x3 has the same bits at half
/// the speed.)
///
/// That is done for 8 candidates, those that the product of the high parts alone finds best. Their roundings, 2^-11 at
/// most and of either sign, move an error by about 1e-4 of itself, and where terms of δ R δᵀ still cancel by a few 1e-4
/// of what it would be if they did not. For the best candidate to be lost 8 others would have to be that near to it.
#include "kernels/cuda/grid_search.cuh"
#include "kernels/cuda/half_scaling.cuh"

namespace gptqd::cuda {

namespace {

// The fragments of mma.m16n8k16 (PTX ISA): thread 4·g + t of a warp holds of A the rows g and g + 8, columns 2t, 2t +
// 1, 2t + 8, 2t + 9; of B the rows 2t, 2t + 1, 2t + 8, 2t + 9 of column g; of C the rows g and g + 8, columns 2t and 2t
// + 1. Here A's rows are candidates, and its columns 16 members in the order that gives thread t the members 4t ... 4t
// + 3. Two tiles of C have them as columns in the order that gives it the same.
constexpr int step = 16;                      // members a k-step, and a pair of n-tiles
constexpr int m_rows = 16;                    // candidates an m-tile
constexpr int warp_rows = 2;                  // rows of W a warp: what it loads of H serves both
constexpr int compared = m_rows / warp_rows;  // candidates of a row after screening: both rows' are an m-tile
constexpr int split_warps = 8;
constexpr int split_threads = 32 * split_warps;
constexpr unsigned int full_warp = 0xffffffffu;

/// Pieces (pair of n-tiles, k-step) of the upper triangle: pair p has the k-steps 0 ... p.
__host__ __device__ constexpr int pieces_of(int steps) { return steps * (steps + 1) / 2; }
__host__ __device__ constexpr int piece_at(int pair, int k) { return pieces_of(pair) + k; }

/// A piece of B for one thread: of each tile two pairs of binary16 numbers.
struct alignas(16) Piece {
  std::uint32_t tiles[2][2];
};

__device__ Piece load_piece(const Piece* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return {{{words.x, words.y}, {words.z, words.w}}};
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

/// What the search reads of a group's block of H.
template <int steps>
struct alignas(16) GroupBlock {
  Piece high[pieces_of(steps)][32];  // parts of U
  Piece low[pieces_of(steps)][32];   // what they leave
  float common[step * steps];        // v
};

/// One block a group. R is scaled by a power of two, v by the root of its half.
template <int steps>
__global__ void __launch_bounds__(split_threads)
    split_blocks(const float* blocks, std::int64_t stride, std::int64_t size, GroupLists lists,
                 GroupBlock<steps>* groups) {
  __shared__ float common[step * steps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const std::int64_t group = blockIdx.x;
  const float* const block = blocks + group * stride;
  const int count = static_cast<int>(min(size, std::int64_t{lists.begin[group + 1] - lists.begin[group]}));
  const auto entry = [&](int i, int j) {
    return 0.5 * (static_cast<double>(block[i * size + j]) + static_cast<double>(block[j * size + i]));
  };
  const float own = thread < count ? block[thread * size + thread] : 0.0f;
  const float pivot = reduce<split_threads>(own, Maximum{});
  const int place = reduce<split_threads>(thread < count && own == pivot ? thread : split_threads, Minimum{});
  if (thread < step * steps) {
    const bool exists = thread < count && place < count && pivot > 0;
    common[thread] = exists ? static_cast<float>(entry(thread, place) / sqrt(static_cast<double>(pivot))) : 0.0f;
  }
  __syncthreads();
  const auto rest = [&](int i, int j) {
    return static_cast<float>(entry(i, j) - static_cast<double>(common[i]) * static_cast<double>(common[j]));
  };
  float largest = 0;
  float largest_rest = 0;
  for (int i = warp; i < count; i += split_warps) {
    for (int j = lane; j < count; j += 32) {
      largest = fmaxf(largest, fabsf(block[i * size + j]));
      largest_rest = fmaxf(largest_rest, fabsf(rest(i, j)));
    }
  }
  // Below 2^-30 of H nothing of R matters, and squares of v would not be finite.
  const float factor = fminf(half_scaling(reduce<split_threads>(largest_rest, Maximum{})),
                             0x1p30f * half_scaling(reduce<split_threads>(largest, Maximum{})));
  const int root = ((__float_as_int(factor) >> 23) - 127 - 1) >> 1;  // the factor, or its half, is 2^(2·root + 1)
  const float scale = ldexpf(1.0f, 2 * root + 1);
  const auto upper = [&](int k, int n) {
    return k > n || n >= count ? 0.0f : (k == n ? 0.5f : 1.0f) * (rest(k, n) * scale);
  };
  GroupBlock<steps>& to = groups[group];
  if (thread < step * steps) {
    to.common[thread] = common[thread] * ldexpf(1.0f, root);
  }
  for (int pair = 0; pair < steps; ++pair) {
    for (int k = warp; k <= pair; k += split_warps) {
      Piece high;
      Piece low;
      for (int tile = 0; tile < 2; ++tile) {
        const int column = step * pair + lane / 8 * 4 + 2 * tile + lane / 4 % 2;
        for (int part = 0; part < 2; ++part) {
          const int row = step * k + lane % 4 * 4 + 2 * part;
          const SplitPair both = split(upper(row, column), upper(row + 1, column));
          high.tiles[tile][part] = both.high;
          low.tiles[tile][part] = both.low;
        }
      }
      to.high[piece_at(pair, k)][lane] = high;
      to.low[piece_at(pair, k)][lane] = low;
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

/// What ShortRounder rounds with, given the number of bits.
struct ShortScale {
  static constexpr float whole = 0x1.8p23f;  // around it numbers are 1 apart

  float highest;   // code
  float share;     // 1/highest
  float fine;      // 3·2^bits: around it numbers are 2^(bits−22) apart
  float to_whole;  // from `fine`

  explicit ShortScale(int bits)
      : highest(static_cast<float>((1 << bits) - 1)),
        share(1 / highest),
        fine(static_cast<float>(3 << bits)),
        to_whole(whole - fine) {}
};

/// GridRounder's error() of weights of at most 11 significant bits, with the same bits, in five instructions.
///
/// x = w/(s·highest) + z/highest, limited to [0, 1], is the code's share of the highest one. Three roundings put
/// x·highest less than 2^(bits−23) off. The next step rounds it, less z, to a multiple of 2^(bits−22): so the middle
/// between two codes is where it was, for the last step to take it to the even one. Other quotients of two numbers of
/// 11 bits are at least 2^-13 from a middle, and stay on their side.
struct alignas(16) ShortRounder {
  float scale;
  float step;    // 1/(s·highest)
  float offset;  // z/highest
  float fine;    // ShortScale::fine − z

  ShortRounder() = default;
  __device__ ShortRounder(float scale_, float zero, const ShortScale& codes)
      : scale(scale_), step(1.0f / (scale_ * codes.highest)), fine(codes.fine - zero) {
    const float near = zero * codes.share;
    offset = __fmaf_rn(__fmaf_rn(-near, codes.highest, zero), codes.share, near);  // rounded as the quotient
  }
  __device__ float error(float weight, const ShortScale& codes) const {
    const float code = __fmaf_rn(__saturatef(__fmaf_rn(weight, step, offset)), codes.highest, fine);
    return __fmaf_rn(scale, (code + codes.to_whole) - ShortScale::whole, -weight);
  }
  __device__ bool is(const ShortRounder& other) const { return scale == other.scale && fine == other.fine; }
  __device__ GridRounder<float> general(const ShortScale& codes) const {
    return GridRounder<float>(scale, codes.fine - fine, codes.highest);
  }
};
/// Whether it has at most 11 significant bits, as what 16-bit types hold.
__device__ bool is_short(float weight) { return (__float_as_uint(weight) & 0x1fffu) == 0; }

/// What an error is made of: products of high parts alone, or all three.
enum class Products { high, split };

/// δ U δᵀ + (δ vᵀ)² of the candidates of `tiles` m-tiles; a thread gets those of A's rows g and g + 8.
/// @param block     the group's, in shared memory
/// @param weights   [steps·step] each, of A's rows g and g + 8 of each tile; 16-byte aligned
/// @param delta_of  (tile, 0 or 1 for A's row g or g + 8, weight): its δ
template <Products products, int steps, int tiles, class DeltaOf>
__device__ void find_errors(const GroupBlock<steps>& block, const float* const (&weights)[tiles][2],
                            const DeltaOf& delta_of, float (&errors)[tiles][2]) {
  const unsigned int lane = threadIdx.x % 32;
  std::uint32_t high[tiles][steps][4];
  std::uint32_t low[tiles][steps][4];
  float common[tiles][2] = {};  // δ vᵀ
#pragma unroll
  for (int m = 0; m < tiles; ++m) {
    errors[m][0] = 0;
    errors[m][1] = 0;
  }
#pragma unroll
  for (int pair = 0; pair < steps; ++pair) {
    float delta[tiles][2][4];  // [tile][A's row g or g + 8][member 4t + i]
    const unsigned int first = step * pair + lane % 4 * 4;
    const float4 v = *reinterpret_cast<const float4*>(block.common + first);
#pragma unroll
    for (int m = 0; m < tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 members = *reinterpret_cast<const float4*>(weights[m][half] + first);
        delta[m][half][0] = delta_of(m, half, members.x);
        delta[m][half][1] = delta_of(m, half, members.y);
        delta[m][half][2] = delta_of(m, half, members.z);
        delta[m][half][3] = delta_of(m, half, members.w);
        common[m][half] = __fmaf_rn(delta[m][half][0], v.x, common[m][half]);
        common[m][half] = __fmaf_rn(delta[m][half][1], v.y, common[m][half]);
        common[m][half] = __fmaf_rn(delta[m][half][2], v.z, common[m][half]);
        common[m][half] = __fmaf_rn(delta[m][half][3], v.w, common[m][half]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // A's registers: rows g and g + 8 of two members, then of the other two
        const float(&from)[4] = delta[m][i % 2];
        const int at = i / 2 * 2;
        if constexpr (products == Products::split) {
          const SplitPair both = split(from[at], from[at + 1]);
          high[m][pair][i] = both.high;
          low[m][pair][i] = both.low;
        } else {
          high[m][pair][i] = pack_halves(from[at], from[at + 1]);
        }
      }
    }
    float sums[tiles][2][4] = {};
#pragma unroll
    for (int k = pair; k >= 0; --k) {  // downwards, so that A stays in its registers
      const Piece b = load_piece(&block.high[piece_at(pair, k)][lane]);
#pragma unroll
      for (int m = 0; m < tiles; ++m) {
        multiply(sums[m][0], high[m][k], b.tiles[0]);
        multiply(sums[m][1], high[m][k], b.tiles[1]);
      }
      if constexpr (products == Products::split) {
        const Piece b_low = load_piece(&block.low[piece_at(pair, k)][lane]);
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          multiply(sums[m][0], high[m][k], b_low.tiles[0]);
          multiply(sums[m][1], high[m][k], b_low.tiles[1]);
          multiply(sums[m][0], low[m][k], b.tiles[0]);
          multiply(sums[m][1], low[m][k], b.tiles[1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          errors[m][half] = __fmaf_rn(sums[m][i / 2][2 * half + i % 2], delta[m][half][i], errors[m][half]);
        }
      }
    }
  }
  const auto over_quad = [](float value) {  // the threads that share A's rows
    value += __shfl_xor_sync(full_warp, value, 1);
    return value + __shfl_xor_sync(full_warp, value, 2);
  };
#pragma unroll
  for (int m = 0; m < tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float projection = over_quad(common[m][half]);
      errors[m][half] = __fmaf_rn(projection, projection, over_quad(errors[m][half]));
    }
  }
}

/// Memory of one warp for its rows.
template <int steps>
struct alignas(16) WarpMemory {
  float weights[warp_rows][step * steps];  // scaled by a power of two, 0 behind the last member
  ShortRounder rounders[warp_rows][clip_candidates];
  float errors[warp_rows][clip_candidates];  // by screening
  GridRange<float> ranges[warp_rows];
  float factors[warp_rows];
};

/// Memory of a thread block.
template <int steps>
struct SplitMemory {
  GroupBlock<steps> block;
  WarpMemory<steps> warps[split_warps];
};

/// Orders a row's candidates by their errors as far as 17 significant bits tell, then by index; NaN as infinite, and a
/// grid that the candidate before has as well, which has lost to it.
__device__ std::uint32_t screening_key(const float (&errors)[clip_candidates],
                                       const ShortRounder (&rounders)[clip_candidates], unsigned int candidate) {
  const bool lost = candidate > 0 && rounders[candidate].is(rounders[max(candidate, 1u) - 1]);
  const float error = errors[candidate];
  const std::uint32_t bits = __float_as_uint(lost || !(error == error) ? HUGE_VALF : error);
  const std::uint32_t ordered = bits >> 31 == 0 ? bits | 0x80000000u : ~bits;
  return (ordered & ~127u) | candidate;
}
__device__ unsigned int candidate_of(std::uint32_t key) { return key & 127u; }

/// The errors of all candidates of both rows, from high parts.
/// @pre short_weights: is_short() holds for every weight. That changes no bit of a result
template <bool short_weights, int steps>
__device__ void screen(const GroupBlock<steps>& block, WarpMemory<steps>& own, const ShortScale& codes) {
  const unsigned int lane = threadIdx.x % 32;
  const auto rounder = [&](int r, unsigned int candidate) {
    if constexpr (short_weights) {
      return own.rounders[r][candidate];
    } else {
      return own.rounders[r][candidate].general(codes);
    }
  };
#pragma unroll 1
  for (unsigned int m = 0; m < clip_candidates; m += m_rows) {
    const unsigned int first = m + lane / 4;
    const decltype(rounder(0, 0)) rounders[warp_rows][2] = {{rounder(0, first), rounder(0, first + 8)},
                                                            {rounder(1, first), rounder(1, first + 8)}};
    const auto delta_of = [&](int r, int half, float weight) {
      if constexpr (short_weights) {
        return rounders[r][half].error(weight, codes);
      } else {
        return rounders[r][half].error(weight);
      }
    };
    float errors[warp_rows][2];
    find_errors<Products::high>(block, {{own.weights[0], own.weights[0]}, {own.weights[1], own.weights[1]}}, delta_of,
                                errors);
    // Thread 4g + t stores that of row t / 2 and candidate g + 8·(t % 2).
    const float near = lane % 4 < 2 ? errors[0][0] : errors[1][0];
    const float far = lane % 4 < 2 ? errors[0][1] : errors[1][1];
    own.errors[lane % 4 / 2][first + lane % 2 * 8] = lane % 2 == 0 ? near : far;
  }
}

/// The candidates of each row with the smallest errors by screening: thread compared·r + i gets the i-th of row r.
template <int steps>
__device__ unsigned int best_screened(const WarpMemory<steps>& memory) {
  static_assert(clip_candidates > 64 && clip_candidates <= 96);
  constexpr std::uint32_t none = 0xffffffffu;
  const unsigned int lane = threadIdx.x % 32;
  std::uint32_t keys[warp_rows][3];  // ascending
#pragma unroll
  for (int r = 0; r < warp_rows; ++r) {
    const auto key = [&](unsigned int candidate) {
      return screening_key(memory.errors[r], memory.rounders[r], candidate);
    };
    const std::uint32_t a = key(lane);
    const std::uint32_t b = key(lane + 32);
    const std::uint32_t c = lane + 64 < clip_candidates ? key(lane + 64) : none;
    keys[r][0] = min(min(a, b), c);
    keys[r][1] = max(min(a, b), min(max(a, b), c));
    keys[r][2] = max(max(a, b), c);
  }
  std::uint32_t result = none;
#pragma unroll
  for (unsigned int i = 0; i < compared; ++i) {
#pragma unroll
    for (unsigned int r = 0; r < warp_rows; ++r) {
      const std::uint32_t least = __reduce_min_sync(full_warp, keys[r][0]);
      result = lane == compared * r + i ? least : result;
      if (keys[r][0] == least) {
        keys[r][0] = keys[r][1];
        keys[r][1] = keys[r][2];
        keys[r][2] = none;
      }
    }
  }
  return candidate_of(result);
}

/// A thread block works on split_warps·warp_rows rows of one group. It ends soon, and half of a multiprocessor's
/// registers are free then: for kernels of streams with a higher priority.
template <int steps>
__global__ void __launch_bounds__(split_threads, 2)
    search_split(GridProblem<float> problem, ShortScale codes, const GroupBlock<steps>* groups) {
  constexpr unsigned int block_words = sizeof(GroupBlock<steps>) / sizeof(uint4);
  constexpr int held = step * steps / 32;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<SplitMemory<steps>*>(memory);
  const unsigned int warp = threadIdx.x / 32;
  const unsigned int lane = threadIdx.x % 32;
  auto& own = shared.warps[warp];
  const std::int64_t group = blockIdx.x;
  auto* const to = reinterpret_cast<uint4*>(&shared.block) + threadIdx.x;
  const auto* const from = reinterpret_cast<const uint4*>(groups + group) + threadIdx.x;
#pragma unroll
  for (unsigned int i = 0; i < block_words; i += split_threads) {
    if (i + threadIdx.x < block_words) {
      copy_in_background(to + i, from + i);
    }
  }
  const std::int32_t* const columns = problem.lists.columns + problem.lists.begin[group];
  const int count = min(step * steps, problem.lists.begin[group + 1] - problem.lists.begin[group]);
  const std::int64_t first_row = std::int64_t{blockIdx.y * split_warps + warp} * warp_rows;

  const float* weights[warp_rows];
#pragma unroll
  for (int r = 0; r < warp_rows; ++r) {  // behind the last row: that one again
    weights[r] = problem.weights.row(min(first_row + r, problem.rows - 1));
  }
  float values[warp_rows][held];
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const bool exists = static_cast<int>(lane) + 32 * j < count;
    const std::int32_t column = exists ? columns[lane + 32 * j] : 0;
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
      values[r][j] = exists ? weights[r][column] : 0.0f;
    }
  }
  bool all_short = true;
#pragma unroll
  for (int r = 0; r < warp_rows; ++r) {
    float low = 0;
    float high = 0;
#pragma unroll
    for (int j = 0; j < held; ++j) {
      low = values[r][j] < low ? values[r][j] : low;
      high = values[r][j] > high ? values[r][j] : high;
      all_short = all_short && is_short(values[r][j]);
    }
    low = reduce<32>(low, Minimum{});
    high = -reduce<32>(-high, Minimum{});
    const float factor = half_scaling(fmaxf(-low, high));
#pragma unroll
    for (int j = 0; j < held; ++j) {
      own.weights[r][lane + 32 * j] = values[r][j] * factor;
    }
    if (lane == 0) {
      own.ranges[r] = grid_range(low, high, problem.spec);
      own.factors[r] = factor;
    }
  }
  __syncwarp();
#pragma unroll 1
  for (unsigned int i = lane; i < warp_rows * clip_candidates; i += 32) {
    const unsigned int r = i / clip_candidates;
    const unsigned int index = i % clip_candidates;
    const auto candidate = grid_candidate(own.ranges[r], static_cast<int>(index), problem.spec);
    own.rounders[r][index] = ShortRounder(candidate.scale * own.factors[r], candidate.zero, codes);
  }
  wait_for_background_copies();
  __syncthreads();
  if (first_row >= problem.rows) {
    return;  // a whole warp
  }

  if (__all_sync(full_warp, all_short)) {
    screen<true>(shared.block, own, codes);
  } else {
    screen<false>(shared.block, own, codes);
  }
  __syncwarp();
  const unsigned int chosen = best_screened(own);

  // A's rows g are candidates of the first row, its rows g + 8 of the second.
  const unsigned int candidates[2] = {__shfl_sync(full_warp, chosen, static_cast<int>(lane / 4)),
                                      __shfl_sync(full_warp, chosen, static_cast<int>(compared + lane / 4))};
  const GridRounder<float> rounders[2] = {own.rounders[0][candidates[0]].general(codes),
                                          own.rounders[1][candidates[1]].general(codes)};
  const auto delta_of = [&](int, int r, float weight) { return rounders[r].error(weight); };
  float errors[1][2];
  find_errors<Products::split>(shared.block, {{own.weights[0], own.weights[1]}}, delta_of, errors);
  const bool even = lane % 2 == 0;  // of the first row
  const ScoredCandidate best = best_of_warp(
      {static_cast<double>(even ? errors[0][0] : errors[0][1]), static_cast<int>(even ? candidates[0] : candidates[1])},
      4);
  if (lane < warp_rows && first_row + lane < problem.rows) {
    problem.store(first_row + lane, group, grid_candidate(own.ranges[lane], best.index, problem.spec));
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

/// body.operator()<steps>() with the k-steps that hold a group of `members`, if any does. @return whether
template <class Body>
bool with_steps(std::int64_t members, const Body& body) {
  if (members > 128) {
    return false;
  }
  members <= 32   ? body.template operator()<2>()
  : members <= 64 ? body.template operator()<4>()
                  : body.template operator()<8>();
  return true;
}

}  // namespace

std::int64_t hessian_search_bytes(const FindGridsArgs& args) {
  std::int64_t bytes = 0;
  if (args.spec.clip == Clip::hessian && args.weights.dtype == DType::f32) {
    with_steps(args.blocks.shape[1],
               [&]<int steps>() { bytes = args.scales.cols() * static_cast<std::int64_t>(sizeof(GroupBlock<steps>)); });
  }
  return bytes;
}

void search_by_hessian(CudaStream& stream, const GridProblem<float>& problem, ConstTensorView<float, 3> blocks,
                       void* memory) {
  const bool split = with_steps(blocks.shape[1], [&]<int steps>() {
    auto* const groups = static_cast<GroupBlock<steps>*>(memory);
    split_blocks<steps><<<grid_size(problem.groups), split_threads, 0, stream.stream()>>>(
        blocks.data, blocks.stride, blocks.shape[1], problem.lists, groups);
    constexpr int bytes = sizeof(SplitMemory<steps>);
    check(cudaFuncSetAttribute(search_split<steps>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "find_grids");
    // All of the multiprocessor's: it would have to be idle before a kernel that needs more could join.
    check(cudaFuncSetAttribute(search_split<steps>, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "find_grids");
    over_rows(problem, split_warps * warp_rows, [&](const GridProblem<float>& part, dim3 grid) {
      search_split<steps><<<grid, split_threads, bytes, stream.stream()>>>(part, ShortScale(part.spec.bits), groups);
    });
  });
  if (!split) {
    search_plainly(stream, problem, blocks);
  }
}

void search_by_hessian(CudaStream& stream, const GridProblem<double>& problem, ConstTensorView<float, 3> blocks,
                       void*) {
  search_plainly(stream, problem, blocks);
}

}  // namespace gptqd::cuda
