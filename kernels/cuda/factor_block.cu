#include "kernels/cuda/device.cuh"
#include "kernels/cuda/factor_block.cuh"

namespace gptqd::cuda {

namespace {

constexpr int side = static_cast<int>(factor_block_columns);
/// Columns that one warp factors in registers.
constexpr int part = 32;
constexpr int parts = side / part;
/// An odd pitch: a warp's lanes, one row each, read different banks.
constexpr int pitch = side + 1;
constexpr int block_threads = 256;
constexpr int across = 16;
static_assert(parts == 4 && part == 2 * across);

/// L11 and its inverse, in one block's shared memory.
struct BlockMatrices {
  float l[side][pitch];
  float inverse[side][pitch];
  float pivots[side];  // 1/L_jj
};

/// 1/√x to the last bit or so.
__device__ float reciprocal_root(float x) {
  const float y = rsqrtf(x);
  return fmaf(y, 0.5f * fmaf(-x * y, y, 1.0f), y);
}

/// One warp: the diagonal part at `at`, lane r has row r. @return the first pivot that fails, or side
__device__ int factor_part(BlockMatrices& block, int at) {
  const int lane = static_cast<int>(threadIdx.x);
  float row[part];
#pragma unroll
  for (int k = 0; k < part; ++k) {
    row[k] = block.l[at + lane][at + k];
  }
  int failed = side;
  float own = 0;
#pragma unroll
  for (int j = 0; j < part; ++j) {
    const float pivot = __shfl_sync(0xffffffffu, row[j], j);
    const float reciprocal = reciprocal_root(pivot);
    if ((!(pivot > 0) || !isfinite(pivot)) && failed == side) {
      failed = at + j;
    }
    // The root too from its reciprocal: √x = x/√x, and half of what is missing in its square times that.
    const float near = pivot * reciprocal;
    const float root = fmaf(0.5f * reciprocal, fmaf(-near, near, pivot), near);
    row[j] = lane == j ? root : row[j] * reciprocal;
    own = lane == j ? reciprocal : own;
#pragma unroll
    for (int k = j + 1; k < part; ++k) {
      row[k] = fmaf(-row[j], __shfl_sync(0xffffffffu, row[j], k), row[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < part; ++k) {
    if (k <= lane) {
      block.l[at + lane][at + k] = row[k];
    }
  }
  block.pivots[at + lane] = own;
  return failed;
}

/// One thread: row r below the part at `at` becomes a row of L.
__device__ void solve_row(BlockMatrices& block, int at, int r) {
  float row[part];
#pragma unroll
  for (int j = 0; j < part; ++j) {
    row[j] = block.l[r][at + j];
  }
#pragma unroll
  for (int j = 0; j < part; ++j) {
    row[j] *= block.pivots[at + j];
#pragma unroll
    for (int k = j + 1; k < part; ++k) {
      row[k] = fmaf(-row[j], block.l[at + k][at + j], row[k]);
    }
  }
#pragma unroll
  for (int j = 0; j < part; ++j) {
    block.l[r][at + j] = row[j];
  }
}

/// All threads: the 16·count columns behind the part that ends at `begin` are updated by it. Above the diagonal too:
/// nobody reads that.
template <int count>
__device__ void update_rest(BlockMatrices& block, int begin) {
  const int x = static_cast<int>(threadIdx.x) % across;
  const int y = static_cast<int>(threadIdx.x) / across;
  float sums[count][count] = {};
#pragma unroll 4
  for (int k = begin - part; k < begin; ++k) {
    float left[count];
    float right[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      left[i] = block.l[begin + y + across * i][k];
      right[i] = block.l[begin + x + across * i][k];
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int j = 0; j < count; ++j) {
      block.l[begin + y + across * i][begin + x + across * j] -= sums[i][j];
    }
  }
}

/// One warp: the inverse of the diagonal part at `at`, lane c has column c.
__device__ void invert_part(BlockMatrices& block, int at) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float column[part];
#pragma unroll
  for (int i = 0; i < part; ++i) {
    column[i] = i == lane ? 1.0f : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < part; ++i) {
    column[i] *= block.pivots[at + i];
    block.inverse[at + i][at + lane] = column[i];
#pragma unroll
    for (int k = i + 1; k < part; ++k) {
      column[k] = fmaf(-block.l[at + k][at + i], column[i], column[k]);
    }
  }
}

/// Two warps: target[part, part] = sign · a[part, terms] · b[terms, part]; each thread half a row.
__device__ void multiply_parts(float (*target)[pitch], float sign, const float (*a)[pitch], const float (*b)[pitch],
                               int terms, int a_col, int b_col, int target_col) {
  constexpr int half = part / 2;
  const int row = static_cast<int>(threadIdx.x) % 32;
  const int col = static_cast<int>(threadIdx.x) / 32 % 2 * half;
  float sums[half] = {};
  for (int k = 0; k < terms; ++k) {
    const float left = a[row][a_col + k];
#pragma unroll
    for (int j = 0; j < half; ++j) {
      sums[j] = fmaf(left, b[k][b_col + col + j], sums[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < half; ++j) {
    target[row][target_col + col + j] = sign * sums[j];
  }
}

/// One block. transposed_inverse[k, c] = (L11⁻¹)[c, k]; columns beyond the size are those of the identity.
__global__ void __launch_bounds__(block_threads) factor_and_invert(Rows<float> columns, int size, std::int64_t first,
                                                                   float* transposed_inverse, std::int32_t* status) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& block = *reinterpret_cast<BlockMatrices*>(memory);
  __shared__ int failed;
  if (*status != 0) {
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    failed = side;
  }
  for (int i = thread; i < side * side; i += block_threads) {
    const int r = i / side;
    const int c = i % side;
    if (r < size && c <= r) {
      copy_in_background(&block.l[r][c], columns.row(r) + c);
    } else {
      block.l[r][c] = r == c ? 1.0f : 0.0f;
    }
    block.inverse[r][c] = 0;
  }
  wait_for_background_copies();
  __syncthreads();
#pragma unroll 1  // the code is long, and run once: it must come from memory
  for (int at = 0; at < side; at += part) {
    if (thread < 32) {
      const int found = factor_part(block, at);
      if (thread == 0 && found < failed) {
        failed = found;
      }
    }
    __syncthreads();
    if (thread < side - at - part) {
      solve_row(block, at, at + part + thread);
    }
    __syncthreads();
    switch (at / part) {
      case 0:
        update_rest<6>(block, part);
        break;
      case 1:
        update_rest<4>(block, 2 * part);
        break;
      case 2:
        update_rest<2>(block, 3 * part);
        break;
      default:
        break;
    }
    __syncthreads();
  }
  if (failed < side) {
    if (thread == 0) {
      *status = static_cast<std::int32_t>(first + failed + 1);
    }
    return;
  }
  for (int i = thread; i < size * side; i += block_threads) {
    const int r = i / side;
    const int c = i % side;
    if (c <= r) {
      columns.row(r)[c] = block.l[r][c];
    }
  }

  if (thread / 32 < parts) {
    invert_part(block, thread / 32 * part);
  }
  __syncthreads();
  // Part (i, j) of the inverse is −inverse(i, i) · Σ_k L(i, k) · inverse(k, j); the sum waits at (j, i).
  const int pair = thread / 64;
  for (int distance = 1; distance < parts; ++distance) {
    const int i = (pair + distance) * part;
    const int j = pair * part;
    if (pair + distance < parts) {
      multiply_parts(&block.inverse[j], 1, &block.l[i], &block.inverse[j], i - j, j, j, i);
    }
    __syncthreads();
    if (pair + distance < parts) {
      multiply_parts(&block.inverse[i], -1, &block.inverse[i], &block.inverse[j], part, i, i, j);
    }
    __syncthreads();
  }
  for (int index = thread; index < side * side; index += block_threads) {
    const int k = index / side;
    const int c = index % side;
    transposed_inverse[index] = c >= k ? block.inverse[c][k] : 0.0f;
  }
}

constexpr int apply_rows = 64;
constexpr int apply_threads = 256;
constexpr int apply_pitch = apply_rows + 4;
constexpr int apply_run = 4;
constexpr int apply_shared_bytes = side * (side + apply_pitch) * static_cast<int>(sizeof(float));

/// rows[r, c] = Σ_{k <= c} rows[r, k] · transposed_inverse[k, c], in place: a thread block has its rows whole.
__global__ void __launch_bounds__(apply_threads)
    apply_inverse(Rows<float> rows, std::int64_t count, int size, const float* transposed_inverse,
                  const std::int32_t* status) {
  extern __shared__ __align__(16) std::byte memory[];
  auto* const inverse = reinterpret_cast<float*>(memory);  // [side, side]
  float* const staged = inverse + side * side;             // [side, apply_pitch], transposed
  if (*status != 0) {
    return;
  }
  const std::int64_t row = std::int64_t{blockIdx.x} * apply_rows;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < side * side / apply_run; i += apply_threads) {
    copy_in_background(reinterpret_cast<float4*>(inverse) + i, reinterpret_cast<const float4*>(transposed_inverse) + i);
  }
  for (int i = thread; i < side * apply_rows; i += apply_threads) {
    const int r = i / side;
    const int k = i % side;
    const bool exists = row + r < count && k < size;
    copy_in_background(staged + k * apply_pitch + r, exists ? rows.row(row + r) + k : rows.data, exists);
  }
  wait_for_background_copies();
  __syncthreads();
  // Rows 4y + i, columns 4x + j and 64 + 4x + j.
  const int x = thread % across;
  const int y = thread / across;
  float sums[apply_run][2 * apply_run] = {};
#pragma unroll 8
  for (int k = 0; k < side; ++k) {
    const auto left = load_pack<apply_run>(staged + k * apply_pitch + apply_run * y);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h == 0 && k >= side / 2) {
        continue;  // zeros
      }
      const auto right = load_pack<apply_run>(inverse + k * side + h * (side / 2) + apply_run * x);
#pragma unroll
      for (int i = 0; i < apply_run; ++i) {
#pragma unroll
        for (int j = 0; j < apply_run; ++j) {
          sums[i][h * apply_run + j] = fmaf(left.values[i], right.values[j], sums[i][h * apply_run + j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < apply_run; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * apply_run; ++j) {
      const std::int64_t r = row + apply_run * y + i;
      const int c = j / apply_run * (side / 2) + apply_run * x + j % apply_run;
      if (r < count && c < size) {
        rows.row(r)[c] = sums[i][j];
      }
    }
  }
}

}  // namespace

void factor_block(CudaStream& stream, const TensorView<float, 2>& columns, std::int64_t first, std::int32_t* status,
                  void* memory) {
  const int size = static_cast<int>(columns.cols());
  require(columns.cols() <= factor_block_columns && columns.cols() <= columns.rows(),
          "factor_block: more columns than it takes");
  auto* const inverse = static_cast<float*>(memory);
  constexpr auto doing = "giving a kernel its shared memory";
  check(cudaFuncSetAttribute(factor_and_invert, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(sizeof(BlockMatrices))),
        doing);
  factor_and_invert<<<1, block_threads, sizeof(BlockMatrices), stream.stream()>>>(Rows<float>(columns), size, first,
                                                                                  inverse, status);
  const std::int64_t below = columns.rows() - size;
  if (below > 0) {
    check(cudaFuncSetAttribute(apply_inverse, cudaFuncAttributeMaxDynamicSharedMemorySize, apply_shared_bytes), doing);
    apply_inverse<<<grid_size(divide_up(below, apply_rows)), apply_threads, apply_shared_bytes, stream.stream()>>>(
        Rows<float>(columns.slice_rows(size, below)), below, size, inverse, status);
  }
}

}  // namespace gptqd::cuda
