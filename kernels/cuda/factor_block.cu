#include "kernels/cuda/device.cuh"
#include "kernels/cuda/factor_block.cuh"

namespace gptqd::cuda {

namespace {

constexpr int side = static_cast<int>(factor_block_columns);
/// Columns of a panel of the block: its diagonal tile belongs to one warp.
constexpr int tile = 16;
constexpr int tiles = side / tile;
/// Columns that a panel eliminates at once.
constexpr int step = 4;
constexpr int steps = tile / step;
using Run = Pack<float, step>;
/// Rows begin at multiples of 16 bytes, and eight of them in different banks.
constexpr int pitch = side + step;
constexpr int tile_pitch = tile + step;

/// One warp that has the diagonal tile of a panel, threads that have two of its other rows each, and threads that
/// prepare the next panel. Warps whose numbers differ by 4 share a scheduler.
constexpr int lead_threads = 32;
constexpr int follow_threads = side / 2;
constexpr int panel_threads = lead_threads + follow_threads;
constexpr int update_threads = side;
constexpr int block_threads = panel_threads + update_threads;
/// Steps that the next panel's threads apply at a time.
constexpr int steps_at_once = 2;
// Barriers by number: a panel is ready for its elimination, a step of the leading warp is done, some steps of all its
// threads are.
constexpr int panel_ready = 1;
constexpr int first_lead = panel_ready + 1;
constexpr int first_done = first_lead + steps;

/// The tiles of L11⁻ᵀ on and above its diagonal follow each other, rows of tiles first. Each is [tile, tile].
constexpr int tile_size = tile * tile;
__device__ constexpr int tile_number(int row, int col) { return row * tiles - row * (row - 1) / 2 + col - row; }
constexpr int inverse_size = side * (side + tile) / 2;
static_assert(inverse_size * sizeof(float) == factor_block_bytes);

/// The factor of a step's diagonal block, with the diagonal's reciprocals in place of the diagonal.
struct alignas(16) StepFactor {
  float l[step][step];
};
struct Step {
  StepFactor factor;
  Run roots;  ///< its diagonal
};

/// In shared memory. Rows of the identity go through the same elimination as the rows below a panel, and become
/// I·L11⁻ᵀ. Row k of it takes part from column k on, and lies where row k of L11 would have its zeros.
struct BlockMatrix {
  float rows[side][pitch];                 ///< L11 below its diagonal tiles, L11⁻ᵀ elsewhere
  float diagonal_tiles[side][tile_pitch];  ///< of L11, but for the diagonal
  Step steps[side / step];
  float identity[tile][tile_pitch];

  __device__ float root(int r) const { return steps[r / step].roots.values[r % step]; }
};

/// A condition that is the same in all lanes: of any other the compiler takes care that they may part.
__device__ bool same_in_warp(bool condition) { return __all_sync(0xffffffffu, condition) != 0; }

/// 1/√x within 2^-22.9. What is no positive normal number gives 0, an infinity or NaN.
__device__ float estimate_reciprocal_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// One step of Newton's method: 1/√x to the last bit or so; no finite number if the estimate was 0, an infinity or NaN.
__device__ float refine_reciprocal_root(float x, float y) { return fmaf(y, fmaf(x * y, -0.5f * y, 0.5f), y); }

/// The diagonal block of a step, in every lane of the leading warp. `row` has the step's columns.
__device__ void share_diagonal(float (&a)[step][step], const Run& row, int first_lane) {
#pragma unroll
  for (int i = 0; i < step; ++i) {
#pragma unroll
    for (int j = 0; j <= i; ++j) {
      a[i][j] = __shfl_sync(0xffffffffu, row.values[j], first_lane + i);
    }
  }
}

/// The factor of a [step, step], and its diagonal. From pivot to pivot only estimates are waited for: entries below the
/// diagonal are off by as much as by one more rounding.
__device__ StepFactor factor_step(float (&a)[step][step], Run& roots) {
  StepFactor factor;
#pragma unroll
  for (int j = 0; j < step; ++j) {
    const float estimate = estimate_reciprocal_root(a[j][j]);
    factor.l[j][j] = refine_reciprocal_root(a[j][j], estimate);
    roots.values[j] = a[j][j] * factor.l[j][j];
#pragma unroll
    for (int i = j + 1; i < step; ++i) {
      factor.l[i][j] = a[i][j] * estimate;
#pragma unroll
      for (int k = j + 1; k <= i; ++k) {
        a[i][k] = fmaf(-factor.l[i][j], factor.l[k][j], a[i][k]);
      }
    }
  }
  return factor;
}

/// row · L⁻ᵀ
__device__ Run solve_step(Run row, const StepFactor& factor) {
#pragma unroll
  for (int j = 0; j < step; ++j) {
#pragma unroll
    for (int k = 0; k < j; ++k) {
      row.values[j] = fmaf(-row.values[k], factor.l[j][k], row.values[j]);
    }
    row.values[j] *= factor.l[j][j];
  }
  return row;
}

/// What later columns need of a step: its columns of the rows of the diagonal tile behind it.
struct LaterRows {
  Run rows[steps - 1][step] = {};

  /// `next`: the first of them. Behind the tile's last rows the first again, for nothing.
  __device__ void load(const float* next, int s) {
#pragma unroll
    for (int i = 0; i < steps - 1; ++i) {
      const float* const from = next + (s + 1 + i < steps ? step * i * tile_pitch : 0);
#pragma unroll
      for (int j = 0; j < step; ++j) {
        rows[i][j] = load_pack<step>(from + j * tile_pitch);
      }
    }
  }

  /// row − solved · rows[i]ᵀ
  __device__ Run apply(Run row, const Run& solved, int i) const {
#pragma unroll
    for (int j = 0; j < step; ++j) {
#pragma unroll
      for (int k = 0; k < step; ++k) {
        row.values[j] = fmaf(-solved.values[k], rows[i][j].values[k], row.values[j]);
      }
    }
    return row;
  }
};

// The panel is the columns [first, first + tile), to which all columns before have been applied. The leading warp goes
// ahead, its other threads follow it step by step. Code that runs once waits for its instructions: loops stay loops,
// and a row's registers move on by a step's columns with every step.

/// Panel threads, after step s.
__device__ void arrive_for_next_panel(int s) {
  if ((s + 1) % steps_at_once == 0) {
    arrive_for_others(first_done + s / steps_at_once, block_threads);
  }
}

/// The leading warp: a row of the diagonal tile in each of its first lanes, and the identity's rows beside it. `later`:
/// any finite numbers.
__device__ void lead_panel(BlockMatrix& block, int first, LaterRows& later) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool of_identity = lane >= tile;
  float* const own = block.rows[first + lane % tile] + first;
  const float* const from = of_identity ? block.identity[lane % tile] : own;
  Run rest[steps + 1];  // the columns from the present step on, one place further until the step before is applied
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    rest[i + 1] = load_pack<step>(from + step * i);
  }
  __syncwarp();  // the identity's rows take the place of what has been read
  float* to = of_identity ? own : block.diagonal_tiles[first + lane];
  const float* next = block.diagonal_tiles[first + step];
  Step* shared = block.steps + first / step;
  Run solved{};
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    // The step before is applied where it is urgent, and to the other columns while roots are waited for.
    rest[0] = later.apply(rest[1], solved, 0);
    float diagonal[step][step];
    share_diagonal(diagonal, rest[0], step * s);
#pragma unroll
    for (int i = 1; i < steps - 1; ++i) {
      rest[i] = later.apply(rest[i + 1], solved, i);
    }
    rest[steps - 1] = rest[steps];
    Run roots;
    const StepFactor factor = factor_step(diagonal, roots);
    solved = solve_step(rest[0], factor);
    store_pack(to, solved);
    __syncwarp();
    if (s + 1 < steps) {
      later.load(next, s);
    }
    if (lane == 0) {
      shared->factor = factor;
      shared->roots = roots;
    }
    arrive_for_others(first_lead + s, panel_threads);
    arrive_for_next_panel(s);
    to += step;
    next += step * tile_pitch + step;
    ++shared;
  }
}

/// The other threads of the panel.
__device__ void follow_panel(BlockMatrix& block, int first) {
  constexpr int count = 2;
  float* own[count];
  bool exists[count];
  Run rest[count][steps];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int place = tile + static_cast<int>(threadIdx.x) - lead_threads + i * follow_threads;
    exists[i] = place < side;
    own[i] = exists[i] ? block.rows[(first + place) % side] + first : own[0];
#pragma unroll
    for (int j = 0; j < steps; ++j) {
      rest[i][j] = load_pack<step>(own[i] + step * j);
    }
  }
  const float* next = block.diagonal_tiles[first + step];
  const Step* shared = block.steps + first / step;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait_with_others(first_lead + s, panel_threads);
    const StepFactor factor = shared->factor;
    Run solved[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      solved[i] = solve_step(rest[i][0], factor);
      if (exists[i]) {
        store_pack(own[i] + step * s, solved[i]);
      }
    }
    arrive_for_next_panel(s);
    if (s + 1 < steps) {
      LaterRows later;
      later.load(next, s);
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int j = 0; j < steps - 1; ++j) {
          rest[i][j] = later.apply(rest[i][j + 1], solved[i], j);
        }
      }
    }
    next += step * tile_pitch + step;
    ++shared;
  }
}

/// A lane's place in a warp's product of 8 rows by 4 columns. Lanes that differ in the lowest bit share a row, lanes
/// that differ in the next share a column: so their loads of 16 bytes go together.
struct LanePlace {
  int x;
  int y;
  __device__ LanePlace() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    x = (lane & 1) | (lane >> 1 & 2);
    y = (lane >> 1 & 1) | (lane >> 2 & 6);
  }
};

/// Update threads: the panel behind panel `p` minus what the panels up to p have to do with it. Waits for the steps of
/// panel p.
__device__ void update_next_panel(BlockMatrix& block, int p) {
  constexpr int count = 4;  // rows and columns of a thread
  constexpr int rows_apart = side / count;
  constexpr int cols_apart = tile / count;
  const LanePlace lane;
  const int row = (static_cast<int>(threadIdx.x) - panel_threads) / 32 * 8 + lane.y;
  const int col = (p + 1) * tile + lane.x;
  float sums[count][count] = {};
#pragma unroll 1
  for (int k = 0; k < (p + 1) * tile; k += steps_at_once * step) {
    if (k == p * tile) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int j = 0; j < count; ++j) {
          sums[i][j] += block.rows[row + rows_apart * i][col + cols_apart * j];
        }
      }
    }
    if (k >= p * tile) {
      wait_with_others(first_done + (k - p * tile) / (steps_at_once * step), block_threads);
    }
    Run left[steps_at_once][count];
    Run right[steps_at_once][count];
#pragma unroll
    for (int h = 0; h < steps_at_once; ++h) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        left[h][i] = load_pack<step>(block.rows[row + rows_apart * i] + k + step * h);
        right[h][i] = load_pack<step>(block.rows[col + cols_apart * i] + k + step * h);
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int row_tile = (row + rows_apart * i) / tile;
      if (row_tile > p || row_tile * tile <= k) {  // else a row of the identity: zeros up to its own column
#pragma unroll
        for (int h = 0; h < steps_at_once; ++h) {
#pragma unroll
          for (int e = 0; e < step; ++e) {
#pragma unroll
            for (int j = 0; j < count; ++j) {
              sums[i][j] = fmaf(-left[h][i].values[e], right[h][j].values[e], sums[i][j]);
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int j = 0; j < count; ++j) {
      block.rows[row + rows_apart * i][col + cols_apart * j] = sums[i][j];
    }
  }
}

/// All threads: the block, with the identity where it has no rows, and zeros above the diagonal.
template <bool packed>
__device__ void load_block(BlockMatrix& block, Rows<float> columns, int size) {
  constexpr int warps = block_threads / 32;
  static_assert(side == 32 * step && block_threads >= side);
  const int thread = static_cast<int>(threadIdx.x);
  // A warp has whole rows, but for the runs that the diagonal passes.
  const int c = thread % 32 * step;
  const float* from = columns.row(thread / 32) + c;
#pragma unroll 1
  for (int r = thread / 32; r < side; r += warps, from += warps * columns.stride) {
    float* const to = block.rows[r] + c;
    const int passed = r / step * step;
    if (c < passed && r < size) {
      if constexpr (packed) {
        copy_in_background(reinterpret_cast<Run*>(to), reinterpret_cast<const Run*>(from));
      } else {
#pragma unroll
        for (int j = 0; j < step; ++j) {
          copy_in_background(to + j, from + j);
        }
      }
    } else if (c != passed) {
      store_pack(to, Run{});
    }
  }
  if (thread < side) {
    const int place = thread % step;
    const int passed = thread - place;
    float* const to = block.rows[thread] + passed;
    if (thread < size) {
      const float* const row = columns.row(thread) + passed;
#pragma unroll
      for (int j = 0; j < step; ++j) {
        copy_in_background(to + j, row + j, j <= place);
      }
    } else {
#pragma unroll
      for (int j = 0; j < step; ++j) {
        to[j] = j == place ? 1.0f : 0.0f;
      }
    }
  }
#pragma unroll 1
  for (int i = thread; i < tile_size; i += block_threads) {
    block.identity[i / tile][i % tile] = i / tile == i % tile ? 1.0f : 0.0f;
  }
  wait_for_background_copies();
}

/// Update threads: panel `p` of L11 and of L11⁻ᵀ.
template <bool packed>
__device__ void store_panel(const BlockMatrix& block, int p, Rows<float> columns, int size, float* inverse) {
  const int thread = static_cast<int>(threadIdx.x) - panel_threads;
  const int in_tile = thread % steps * step;
  const int c = p * tile + in_tile;
#pragma unroll 1
  for (int r = thread / steps; r < side; r += update_threads / steps) {
    const int row_tile = r / tile;
    if (row_tile <= p) {
      store_pack(inverse + tile_number(row_tile, p) * tile_size + r % tile * tile + in_tile,
                 load_pack<step>(block.rows[r] + c));
    }
    if (c <= r && r < size) {
      const auto l = load_pack<step>(row_tile == p ? block.diagonal_tiles[r] + in_tile : block.rows[r] + c);
      float* const to = columns.row(r) + c;
      if (packed && c + step <= r) {
        store_pack(to, l);
      } else {
#pragma unroll
        for (int j = 0; j < step; ++j) {
          if (c + j <= r) {
            to[j] = c + j == r ? block.root(r) : l.values[j];
          }
        }
      }
    }
  }
}

/// One warp. @return the first pivot whose root is not a positive finite number, or side
__device__ int find_failure(const BlockMatrix& block) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = side;
  __syncwarp();
#pragma unroll 1
  for (int r = side - 32 + lane; r >= 0; r -= 32) {
    const float root = block.root(r);
    const unsigned int failed = __ballot_sync(0xffffffffu, !(root > 0) || !isfinite(root));
    if (failed != 0) {
      first = r - lane + __ffs(static_cast<int>(failed)) - 1;
    }
  }
  return first;
}

/// One block. `inverse`: L11⁻ᵀ, in tiles. Columns beyond the size are those of the identity.
template <bool packed>
__global__ void __launch_bounds__(block_threads, 2)
    factor_and_invert(Rows<float> columns, int size, std::int64_t first, float* inverse, std::int32_t* status) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& block = *reinterpret_cast<BlockMatrix*>(memory);
  const std::int32_t before = *status;  // not waited for before the copies have begun
  load_block<packed>(block, columns, size);
  if (before != 0) {
    return;
  }
  __syncthreads();
  if (same_in_warp(threadIdx.x < lead_threads)) {
    LaterRows later;
#pragma unroll 1
    for (int p = 0; p < tiles; ++p) {
      if (p > 0) {
        wait_with_others(panel_ready, block_threads);
      }
      lead_panel(block, p * tile, later);
    }
    const int failed = find_failure(block);
    if (threadIdx.x == 0 && failed < side) {
      *status = static_cast<std::int32_t>(first + failed + 1);
    }
  } else if (same_in_warp(threadIdx.x < panel_threads)) {
#pragma unroll 1
    for (int p = 0; p < tiles; ++p) {
      if (p > 0) {
        wait_with_others(panel_ready, block_threads);
      }
      follow_panel(block, p * tile);
    }
  } else {
#pragma unroll 1
    for (int p = 0; p < tiles; ++p) {
      if (p + 1 < tiles) {
        update_next_panel(block, p);
        wait_with_others(panel_ready, block_threads);
      } else {
#pragma unroll 1
        for (int i = 0; i < steps / steps_at_once; ++i) {
          wait_with_others(first_done + i, block_threads);
        }
      }
      store_panel<packed>(block, p, columns, size, inverse);
    }
  }
}

constexpr int apply_threads = 128;
constexpr int tiles_half = tiles / 2;

template <int count>
constexpr int apply_rows = 8 * count;
template <int count>
constexpr int apply_bytes = (inverse_size + apply_rows<count> * pitch) * static_cast<int>(sizeof(float));

/// Begins to copy what the terms of the first (0) or second (1) half need: rows, zero where there are none, and tiles.
template <int count, bool packed>
__device__ void load_half(float* inverse, float* staged, int half, Rows<float> rows, std::int64_t existing, int size,
                          const float* from) {
  constexpr int packs = side / 2 / step;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int i = thread; i < apply_rows<count> * packs; i += apply_threads) {
    const int r = i / packs;
    const int c = half * (side / 2) + i % packs * step;
    float* const to = staged + r * pitch + c;
    const float* const element = rows.row(r) + c;
    if (packed && r < existing && c + step <= size) {
      copy_in_background(reinterpret_cast<Run*>(to), reinterpret_cast<const Run*>(element));
    } else {
#pragma unroll
      for (int j = 0; j < step; ++j) {
        copy_in_background(to + j, element + j, r < existing && c + j < size);
      }
    }
  }
  const int begin = half == 0 ? 0 : tile_number(tiles_half, tiles_half) * tile_size;
  const int end = half == 0 ? tile_number(tiles_half, tiles_half) * tile_size : inverse_size;
#pragma unroll 1
  for (int i = begin + thread * step; i < end; i += apply_threads * step) {
    copy_in_background(reinterpret_cast<Run*>(inverse + i), reinterpret_cast<const Run*>(from + i));
  }
  end_group_of_copies();
}

/// sums[g][i, j] += Σ left[8·i, k] · right[g][k, j] over the terms of a tile, in their order, for the first `groups`.
template <int groups, int count>
__device__ void multiply_tile(float (&sums)[2][count][step], const float* left, const float* const (&right)[2]) {
#pragma unroll(8 / count)
  for (int k = 0; k < tile; k += step) {
    Run terms[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      terms[i] = load_pack<step>(left + 8 * i * pitch + k);
    }
#pragma unroll
    for (int e = 0; e < step; ++e) {
#pragma unroll
      for (int g = 0; g < groups; ++g) {
        const auto factors = load_pack<step>(right[g] + (k + e) * tile);
#pragma unroll
        for (int i = 0; i < count; ++i) {
#pragma unroll
          for (int j = 0; j < step; ++j) {
            sums[g][i][j] = fmaf(terms[i].values[e], factors.values[j], sums[g][i][j]);
          }
        }
      }
    }
  }
}

/// rows[r, c] = Σ_{k <= c} rows[r, k] · (L11⁻ᵀ)[k, c], in place: a thread block has its rows whole, 8·count of them.
/// A warp has all of them, in the columns of two tiles, which together have as many terms as those of the other warps.
template <int count, bool packed>
__global__ void __launch_bounds__(apply_threads, 3)
    apply_inverse(Rows<float> rows, std::int64_t existing, int size, const float* from, const std::int32_t* status) {
  static_assert(apply_threads / 32 == tiles_half);
  extern __shared__ __align__(16) float apply_memory[];
  float* const inverse = apply_memory;
  float* const staged = inverse + inverse_size;  // [8·count, pitch]
  const std::int32_t before = *status;           // not waited for before the copies have begun
  const std::int64_t row = std::int64_t{blockIdx.x} * apply_rows<count>;
  rows.data = rows.row(row);
  existing -= row;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    load_half<count, packed>(inverse, staged, half, rows, existing, size, from);
  }
  if (before != 0) {
    wait_for_background_copies();
    return;
  }
  wait_for_groups_of_copies<1>();
  __syncthreads();
  const LanePlace lane;
  const int low = static_cast<int>(threadIdx.x) / 32;
  const int high = tiles - 1 - low;
  float sums[2][count][step] = {};
#pragma unroll 1
  for (int t = 0; t <= high; ++t) {
    if (t == tiles_half) {
      wait_for_background_copies();
      __syncthreads();
    }
    const float* const left = staged + lane.y * pitch + t * tile;
    const float* const right[2] = {inverse + tile_number(t, high) * tile_size + step * lane.x,
                                   inverse + tile_number(t, low) * tile_size + step * lane.x};
    if (t <= low) {
      multiply_tile<2>(sums, left, right);
    } else {
      multiply_tile<1>(sums, left, right);
    }
  }
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    const int c = (g == 0 ? high : low) * tile + step * lane.x;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int r = lane.y + 8 * i;
      float* const to = rows.row(r) + c;
      if (r < existing) {
        if (packed && c + step <= size) {
          Run result;
#pragma unroll
          for (int j = 0; j < step; ++j) {
            result.values[j] = sums[g][i][j];
          }
          store_pack(to, result);
        } else {
#pragma unroll
          for (int j = 0; j < step; ++j) {
            if (c + j < size) {
              to[j] = sums[g][i][j];
            }
          }
        }
      }
    }
  }
}

constexpr auto giving_memory = "giving a kernel its shared memory";

template <int count, bool packed>
void launch_apply(CudaStream& stream, Rows<float> rows, std::int64_t existing, int size, const float* inverse,
                  const std::int32_t* status) {
  const auto kernel = apply_inverse<count, packed>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, apply_bytes<count>), giving_memory);
  kernel<<<grid_size(divide_up(existing, apply_rows<count>)), apply_threads, apply_bytes<count>, stream.stream()>>>(
      rows, existing, size, inverse, status);
}

template <bool packed>
void launch(CudaStream& stream, const TensorView<float, 2>& columns, std::int64_t first, std::int32_t* status,
            float* inverse) {
  const int size = static_cast<int>(columns.cols());
  const auto kernel = factor_and_invert<packed>;
  constexpr int bytes = static_cast<int>(sizeof(BlockMatrix));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), giving_memory);
  kernel<<<1, block_threads, bytes, stream.stream()>>>(Rows<float>(columns), size, first, inverse, status);
  const std::int64_t below = columns.rows() - size;
  if (below == 0) {
    return;
  }
  const Rows<float> rows(columns.slice_rows(size, below));
  // As few rows a block as leave no multiprocessor a second block.
  const std::int64_t multiprocessors = stream.gpu().properties().multiProcessorCount;
  if (below <= multiprocessors * apply_rows<2>) {
    launch_apply<2, packed>(stream, rows, below, size, inverse, status);
  } else if (below <= multiprocessors * apply_rows<4>) {
    launch_apply<4, packed>(stream, rows, below, size, inverse, status);
  } else {
    launch_apply<8, packed>(stream, rows, below, size, inverse, status);
  }
}

}  // namespace

void factor_block(CudaStream& stream, const TensorView<float, 2>& columns, std::int64_t first, std::int32_t* status,
                  void* memory) {
  require(columns.cols() <= factor_block_columns && columns.cols() <= columns.rows(),
          "factor_block: more columns than it takes");
  auto* const inverse = static_cast<float*>(memory);
  allows_packs(step, AnyView<2>(columns)) ? launch<true>(stream, columns, first, status, inverse)
                                          : launch<false>(stream, columns, first, status, inverse);
}

}  // namespace gptqd::cuda
