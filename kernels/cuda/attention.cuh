#pragma once
/// @file What the kernels of attention share.
#include <limits>

#include "kernels/attention.hpp"
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

inline constexpr float log2_e = 1.4426950408889634f;

template <class T>
__device__ std::uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

/// 2^x within 2 ulp; 0 for −infinity, NaN for NaN.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

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
  std::int64_t section_heads = 0;
  int tiles;  // of queries, a sample

  /// Heads come in sections that have `cached_bytes` of keys and values, so that these stay in a cache while all of a
  /// section's queries meet them.
  AttentionProblem(const AttentionArgs& args, int tile_queries,
                   std::int64_t cached_bytes = std::numeric_limits<std::int64_t>::max())
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
        tiles(static_cast<int>(divide_up(args.tokens_per_sample, tile_queries))) {
    const std::int64_t bytes = 2 * args.tokens_per_sample * args.head_dim * size_of(args.k.dtype);  // of a kv head
    const std::int64_t kv_heads = std::min(std::max<std::int64_t>(1, cached_bytes / bytes), sample_heads);
    section_heads = std::min(kv_heads * heads_a_kv_head, sample_heads);
  }
  __host__ __device__ std::int64_t pieces() const { return sample_heads * tiles; }

  /// A piece of the work: a head's tile of queries. Pieces are taken in order of their index: section after section,
  /// and in each of them the last queries first, which see most keys.
  struct Piece {
    std::int64_t row;  // of the sample's first token
    int head;
    int first_query;
    std::int64_t query_column;
    std::int64_t key_column;
    std::int64_t out_column;
    float slope;
  };
  __device__ Piece piece(std::int64_t index, int tile_queries) const {
    const std::int64_t first_head = index / (section_heads * tiles) * section_heads;
    const std::int64_t in_section = index - first_head * tiles;
    const std::int64_t section = min(section_heads, sample_heads - first_head);
    const std::int64_t tile = tiles - 1 - in_section / section;
    const std::int64_t sample_head = first_head + in_section % section;
    const int head = static_cast<int>(sample_head % heads);
    return {.row = sample_head / heads * tokens,
            .head = head,
            .first_query = static_cast<int>(tile) * tile_queries,
            .query_column = head * head_stride,
            .key_column = head / heads_a_kv_head * head_stride,
            .out_column = std::int64_t{head} * head_dim,
            .slope = slopes == nullptr ? 0.0f : slopes[head]};
  }
};

/// By Hopper's warpgroup-level matrix instructions. @pre takes_warpgroups(stream, args)
void attention_by_warpgroups(CudaStream& stream, const AttentionArgs& args);
bool takes_warpgroups(const CudaStream& stream, const AttentionArgs& args);

/// By tensor cores. @pre takes_tensor_cores(args)
void attention_by_tensor_cores(CudaStream& stream, const AttentionArgs& args);
bool takes_tensor_cores(const AttentionArgs& args);

/// By plain fp32 arithmetic: any type, head_dim and alignment.
void attention_by_fp32(CudaStream& stream, const AttentionArgs& args);

}  // namespace gptqd::cuda
