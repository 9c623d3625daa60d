#pragma once
/// @file What the kernels of attention share.
#include "kernels/attention.hpp"
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// AttentionArgs as kernels see them. Heads are numbered over all samples, queries of a sample in tiles of fixed
/// height.
template <class T>
struct AttentionProblem {
  Rows<const T> q;
  Rows<const T> k;
  Rows<const T> v;
  Rows<T> out;
  std::int64_t head_stride;
  int heads;
  int heads_a_kv_head;
  int head_dim;
  int tokens;
  int window;  // tokens or more: all
  float scale;
  const float* slopes;  // null: no ALiBi
  std::int64_t sample_heads;
  int tiles;  // of queries, a sample

  AttentionProblem(const AttentionArgs& args, int tile_queries)
      : q(args.q),
        k(args.k),
        v(args.v),
        out(args.out),
        head_stride(args.stride_of_heads()),
        heads(static_cast<int>(args.heads)),
        heads_a_kv_head(static_cast<int>(args.heads / args.kv_heads)),
        head_dim(static_cast<int>(args.head_dim)),
        tokens(static_cast<int>(args.tokens_per_sample)),
        window(static_cast<int>(args.window == 0 ? args.tokens_per_sample
                                                 : std::min(args.window, args.tokens_per_sample))),
        scale(args.scale),
        slopes(args.alibi_slopes ? args.alibi_slopes->data : nullptr),
        sample_heads(args.q.rows() / args.tokens_per_sample * args.heads),
        tiles(static_cast<int>(divide_up(args.tokens_per_sample, tile_queries))) {}
  std::int64_t blocks() const { return sample_heads * tiles; }

  /// A block's piece of the work. The last queries see most keys: blocks that start first take those.
  struct Piece {
    std::int64_t row;  // of the sample's first token
    int first_query;
    std::int64_t query_column;
    std::int64_t key_column;
    std::int64_t out_column;
    float slope;
  };
  __device__ Piece piece(int tile_queries) const {
    const std::int64_t index = blockIdx.x;
    const std::int64_t tile = tiles - 1 - index / sample_heads;
    const std::int64_t sample_head = index % sample_heads;
    const int head = static_cast<int>(sample_head % heads);
    return {.row = sample_head / heads * tokens,
            .first_query = static_cast<int>(tile) * tile_queries,
            .query_column = head * head_stride,
            .key_column = head / heads_a_kv_head * head_stride,
            .out_column = std::int64_t{head} * head_dim,
            .slope = slopes == nullptr ? 0.0f : slopes[head]};
  }
};

/// By tensor cores. @pre takes_tensor_cores(args)
void attention_by_tensor_cores(CudaStream& stream, const AttentionArgs& args);
bool takes_tensor_cores(const AttentionArgs& args);

/// By plain fp32 arithmetic: any type, head_dim and alignment.
void attention_by_fp32(CudaStream& stream, const AttentionArgs& args);

}  // namespace gptqd::cuda
