/// @file Attention in the manner of FlashAttention-2 (arXiv:2307.08691), by warp-level matrix instructions (mma.sync).
#include "kernels/cuda/attention.cuh"

namespace gptqd::cuda {

namespace {

constexpr int tile_queries = 128;
constexpr int tile_keys = 64;

/// 16 bytes to shared memory in the background: `valid` of them copied, the others zero.
__device__ void copy_async(std::uint32_t to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid));
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
__device__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ void load_matrices(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}
__device__ void load_transposed(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

/// c [16, 8] += a [16, 16] · b [16, 8].
template <class T>
__device__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// Heads of up to `width` columns, in 4 warps of two 16-row tiles each, or 8 of one where sums take most registers.
template <int width_>
struct Shape {
  static constexpr int width = width_;
  static constexpr int row_tiles = width <= 128 ? 2 : 1;
  static constexpr int warps = tile_queries / (16 * row_tiles);
  static constexpr int threads = 32 * warps;
  /// An odd number of 16-byte pieces: eight rows of a matrix lie in different banks.
  static constexpr int pitch = width + 8;
  static constexpr int shared_bytes = (tile_queries + 2 * tile_keys) * pitch * 2;
};

template <class T, class S, int rows>
__device__ void load_tile(Rows<const T> from, std::int64_t first_row, std::int64_t column, int available, int head_dim,
                          std::uint32_t to) {
  constexpr int pieces = S::width / 8;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += S::threads) {
    const int r = i / pieces;
    const int c = i % pieces * 8;
    const bool valid = r < available && c < head_dim;
    const T* const source = valid ? from.row(first_row + r) + column + c : from.data;
    copy_async(to + static_cast<std::uint32_t>((r * S::pitch + c) * 2), source, valid ? 16 : 0);
  }
}

/// `biased`: scores are scaled and moved by ALiBi before their maximum is taken; else the scale, which then is
/// positive, goes into the exponent.
template <class T, class S, bool biased>
__global__ void __launch_bounds__(S::threads, S::row_tiles) attention(AttentionProblem<T> problem) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int score_tiles = tile_keys / 8;
  constexpr int sum_tiles = S::width / 8;
  const std::uint32_t q_tile = shared_address(memory);
  const std::uint32_t k_tile = q_tile + tile_queries * S::pitch * 2;
  const std::uint32_t v_tile = k_tile + tile_keys * S::pitch * 2;
  const auto piece = problem.piece(blockIdx.x, tile_queries);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::row_tiles;
  // Of each 16x8 tile of results this thread holds rows lane / 4 and 8 further, columns 2·(lane % 4) and the next.
  const int own_row = warp_row + lane / 4;
  const int own_column = lane % 4 * 2;
  const float scale = problem.scale * log2_e;
  const float slope = piece.slope * log2_e;

  const int begin_key = max(0, piece.first_query - problem.window + 1) / tile_keys * tile_keys;
  const int end_key = min(piece.first_query + tile_queries, problem.tokens);
  load_tile<T, S, tile_queries>(problem.q, piece.row + piece.first_query, piece.query_column,
                                problem.tokens - piece.first_query, problem.head_dim, q_tile);
  load_tile<T, S, tile_keys>(problem.k, piece.row + begin_key, piece.key_column, problem.tokens - begin_key,
                             problem.head_dim, k_tile);
  commit_copies();

  float sums[S::row_tiles][sum_tiles][4] = {};
  float highest[S::row_tiles][2];
  float total[S::row_tiles][2] = {};
#pragma unroll
  for (int m = 0; m < S::row_tiles; ++m) {
    highest[m][0] = highest[m][1] = -INFINITY;
  }
  // Where this lane's row of the matrices lies: for q row by row, for k two matrices of columns first, for v
  // transposed.
  const std::uint32_t q_lane =
      q_tile + static_cast<std::uint32_t>(((warp_row + lane % 16) * S::pitch + lane / 16 * 8) * 2);
  const std::uint32_t k_lane =
      k_tile + static_cast<std::uint32_t>(((lane / 16 * 8 + lane % 8) * S::pitch + lane / 8 % 2 * 8) * 2);
  const std::uint32_t v_lane = v_tile + static_cast<std::uint32_t>(((lane % 16) * S::pitch + lane / 16 * 8) * 2);

  for (int key = begin_key; key < end_key; key += tile_keys) {
    wait_for_copies();
    __syncthreads();  // q and k are here; nobody reads the last v any more
    load_tile<T, S, tile_keys>(problem.v, piece.row + key, piece.key_column, problem.tokens - key, problem.head_dim,
                               v_tile);
    commit_copies();

    float scores[S::row_tiles][score_tiles][4] = {};
#pragma unroll
    for (int step = 0; step < S::width / 16; ++step) {
      std::uint32_t a[S::row_tiles][4];
#pragma unroll
      for (int m = 0; m < S::row_tiles; ++m) {
        load_matrices(a[m], q_lane + static_cast<std::uint32_t>((m * 16 * S::pitch + step * 16) * 2));
      }
#pragma unroll
      for (int n = 0; n < score_tiles; n += 2) {
        std::uint32_t b[4];
        load_matrices(b, k_lane + static_cast<std::uint32_t>((n * 8 * S::pitch + step * 16) * 2));
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
          multiply_add<T>(scores[m][n], a[m], b[0], b[1]);
          multiply_add<T>(scores[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }

    wait_for_copies();
    __syncthreads();  // v is here; nobody reads this k any more
    if (key + tile_keys < end_key) {
      load_tile<T, S, tile_keys>(problem.k, piece.row + key + tile_keys, piece.key_column,
                                 problem.tokens - key - tile_keys, problem.head_dim, k_tile);
      commit_copies();
    }

    const bool at_border =
        key + tile_keys - 1 > piece.first_query || key <= piece.first_query + tile_queries - 1 - problem.window;
#pragma unroll
    for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int distance = key + own_column - (piece.first_query + own_row + m * 16 + half * 8);
        float now_highest = highest[m][half];
#pragma unroll
        for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][half * 2 + i];
            const int far = distance + n * 8 + i;
            if constexpr (biased) {
              score = score * scale + slope * static_cast<float>(far);
            }
            if (at_border && (far > 0 || far <= -problem.window)) {
              score = -INFINITY;
            }
            now_highest = fmaxf(now_highest, score);
          }
        }
        now_highest = fmaxf(now_highest, __shfl_xor_sync(0xffffffffu, now_highest, 1));
        now_highest = fmaxf(now_highest, __shfl_xor_sync(0xffffffffu, now_highest, 2));
        const float factor = biased ? 1.0f : scale;
        const float reference = now_highest == -INFINITY ? 0.0f : now_highest * factor;
        const float shrink = power_of_two(highest[m][half] * factor - reference);
        highest[m][half] = now_highest;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][half * 2 + i];
            score = power_of_two(score * factor - reference);
            sum += score;
          }
        }
        total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
        for (int n = 0; n < sum_tiles; ++n) {
          sums[m][n][half * 2] *= shrink;
          sums[m][n][half * 2 + 1] *= shrink;
        }
      }
    }

#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
      std::uint32_t a[S::row_tiles][4];
#pragma unroll
      for (int m = 0; m < S::row_tiles; ++m) {
        const auto& low = scores[m][2 * step];
        const auto& high = scores[m][2 * step + 1];
        a[m][0] = pack_pair<T>(low[0], low[1]);
        a[m][1] = pack_pair<T>(low[2], low[3]);
        a[m][2] = pack_pair<T>(high[0], high[1]);
        a[m][3] = pack_pair<T>(high[2], high[3]);
      }
#pragma unroll
      for (int n = 0; n < sum_tiles; n += 2) {
        std::uint32_t b[4];
        load_transposed(b, v_lane + static_cast<std::uint32_t>((step * 16 * S::pitch + n * 8) * 2));
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
          multiply_add<T>(sums[m][n], a[m], b[0], b[1]);
          multiply_add<T>(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[m][half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const float inverse = 1.0f / all;
      const int query = piece.first_query + own_row + m * 16 + half * 8;
      if (query < problem.tokens) {
        T* const row = problem.out.row(piece.row + query) + piece.out_column + own_column;
#pragma unroll
        for (int n = 0; n < sum_tiles; ++n) {
          if (n * 8 < problem.head_dim) {
            *reinterpret_cast<std::uint32_t*>(row + n * 8) =
                pack_pair<T>(sums[m][n][half * 2] * inverse, sums[m][n][half * 2 + 1] * inverse);
          }
        }
      }
    }
  }
}

template <class T, int width>
void launch(CudaStream& stream, const AttentionArgs& args) {
  using S = Shape<width>;
  const AttentionProblem<T> problem(args, tile_queries);
  const auto start = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::shared_bytes), "attention");
    kernel<<<grid_size(problem.pieces()), S::threads, S::shared_bytes, stream.stream()>>>(problem);
  };
  if (args.alibi_slopes || args.scale <= 0.0f) {
    start(attention<T, S, true>);
  } else {
    start(attention<T, S, false>);
  }
}

template <class T>
void launch(CudaStream& stream, const AttentionArgs& args) {
  if (args.head_dim <= 32) {
    launch<T, 32>(stream, args);
  } else if (args.head_dim <= 64) {
    launch<T, 64>(stream, args);
  } else if (args.head_dim <= 96) {
    launch<T, 96>(stream, args);
  } else if (args.head_dim <= 128) {
    launch<T, 128>(stream, args);
  } else if (args.head_dim <= 192) {
    launch<T, 192>(stream, args);
  } else {
    launch<T, 256>(stream, args);
  }
}

}  // namespace

bool takes_tensor_cores(const AttentionArgs& args) {
  constexpr int width = 8;  // elements of a 16-byte copy
  return args.q.dtype != DType::f32 && args.head_dim % width == 0 && args.stride_of_heads() % width == 0 &&
         args.head_dim <= 256 && allows_packs(width, args.q, args.k, args.v) && allows_packs(2, args.out);
}

void attention_by_tensor_cores(CudaStream& stream, const AttentionArgs& args) {
  if (args.q.dtype == DType::f16) {
    launch<__half>(stream, args);
  } else {
    launch<__nv_bfloat16>(stream, args);
  }
}

}  // namespace gptqd::cuda
