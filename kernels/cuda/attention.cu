#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cuda_backend.hpp"

namespace gptqd::cuda {

namespace {

constexpr int tile = 32;  // queries, and keys
constexpr int threads = 128;
constexpr int threads_a_row = threads / tile;
/// What fits shared memory.
constexpr std::int64_t most_head_dim = 256;

/// Queries, keys, values and sums [tile, width + 1] each, scores [tile, tile + 1]. A quarter warp shares a row.
std::int64_t shared_bytes(std::int64_t head_dim) {
  return (4 * tile * (head_dim + 1) + tile * (tile + 1)) * static_cast<std::int64_t>(sizeof(float));
}

template <class T>
__device__ void load_tile(Rows<const T> from, std::int64_t first_row, std::int64_t column, int rows, int width,
                          float* to) {
  for (int i = static_cast<int>(threadIdx.x); i < tile * width; i += threads) {
    const int r = i / width;
    const int c = i % width;
    to[r * (width + 1) + c] = r < rows ? widen(from.row(first_row + r)[column + c]) : 0.0f;
  }
}

template <class Operation>
__device__ float reduce_row(float value, const Operation& operation) {
  for (int distance = threads_a_row / 2; distance > 0; distance /= 2) {
    value = operation(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

template <class T>
__global__ void __launch_bounds__(threads) attention(AttentionProblem<T> problem) {
  extern __shared__ float memory[];
  const int width = problem.head_dim;
  const int pitch = width + 1;
  float* const q = memory;
  float* const k = q + tile * pitch;
  float* const v = k + tile * pitch;
  float* const sums = v + tile * pitch;
  float* const scores = sums + tile * pitch;
  const auto piece = problem.piece(blockIdx.x, tile);
  const int r = static_cast<int>(threadIdx.x) / threads_a_row;
  const int lane = static_cast<int>(threadIdx.x) % threads_a_row;
  const int query = piece.first_query + r;

  load_tile(problem.q, piece.row + piece.first_query, piece.query_column, min(tile, problem.tokens - piece.first_query),
            width, q);
  for (int c = lane; c < width; c += threads_a_row) {
    sums[r * pitch + c] = 0.0f;
  }
  float highest = -INFINITY;
  float total = 0.0f;
  const int first_key = max(0, piece.first_query - problem.window + 1) / tile * tile;
  const int end_key = min(piece.first_query + tile, problem.tokens);
  for (int key = first_key; key < end_key; key += tile) {
    __syncthreads();
    const int keys = min(tile, problem.tokens - key);
    load_tile(problem.k, piece.row + key, piece.key_column, keys, width, k);
    load_tile(problem.v, piece.row + key, piece.key_column, keys, width, v);
    __syncthreads();

    float score[tile / threads_a_row];
    float now_highest = highest;
    for (int i = 0; i < tile / threads_a_row; ++i) {
      const int j = lane + i * threads_a_row;
      float dot = 0.0f;
      for (int c = 0; c < width; ++c) {
        dot += q[r * pitch + c] * k[j * pitch + c];
      }
      const int distance = key + j - query;
      score[i] = distance > 0 || distance <= -problem.window
                     ? -INFINITY
                     : dot * problem.scale + piece.slope * static_cast<float>(distance);
      now_highest = fmaxf(now_highest, score[i]);
    }
    now_highest = reduce_row(now_highest, Maximum{});
    const float reference = now_highest == -INFINITY ? 0.0f : now_highest;
    const float shrink = expf(highest - reference);
    float sum = 0.0f;
    for (int i = 0; i < tile / threads_a_row; ++i) {
      const float weight = expf(score[i] - reference);
      scores[r * (tile + 1) + lane + i * threads_a_row] = weight;
      sum += weight;
    }
    total = total * shrink + reduce_row(sum, Plus{});
    highest = now_highest;
    __syncwarp();
    for (int c = lane; c < width; c += threads_a_row) {
      float value = sums[r * pitch + c] * shrink;
      for (int j = 0; j < tile; ++j) {
        value += scores[r * (tile + 1) + j] * v[j * pitch + c];
      }
      sums[r * pitch + c] = value;
    }
  }
  if (query < problem.tokens) {
    for (int c = lane; c < width; c += threads_a_row) {
      problem.out.row(piece.row + query)[piece.out_column + c] = convert_element<T>(sums[r * pitch + c] / total);
    }
  }
}

}  // namespace

void attention_by_fp32(CudaStream& stream, const AttentionArgs& args) {
  with_compute_type(args.q.dtype, [&]<class T>() {
    const auto bytes = static_cast<int>(shared_bytes(args.head_dim));
    check(cudaFuncSetAttribute(attention<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention");
    const AttentionProblem<T> problem(args, tile);
    attention<T><<<grid_size(problem.pieces()), threads, static_cast<std::size_t>(bytes), stream.stream()>>>(problem);
  });
}

void CudaBackend::run(Stream& stream, const AttentionArgs& args) {
  require(args.head_dim <= most_head_dim,
          fmt::format("attention: head_dim {}, expected at most {} on the cuda backend; run with --device cpu",
                      args.head_dim, most_head_dim));
  enqueue(stream, "attention", [&](CudaStream& own) {
    if (args.q.rows() == 0) {
      return;
    }
    if (takes_warpgroups(own, args)) {
      attention_by_warpgroups(own, args);
    } else if (takes_tensor_cores(args)) {
      attention_by_tensor_cores(own, args);
    } else {
      attention_by_fp32(own, args);
    }
  });
}

}  // namespace gptqd::cuda
