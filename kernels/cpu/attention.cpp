#include "kernels/attention.hpp"

#include <algorithm>
#include <limits>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/exponential.hpp"
#include "kernels/cpu/lane_sums.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

/// Queries of one tile: its scores against 512 keys stay in a second-level cache.
constexpr std::int64_t tile_queries = 128;

/// What a row of scores may see: the keys [first_seen(i), end_seen(i)) of the tile, and how far away they count less.
struct Sight {
  std::int64_t first_query = 0;  ///< position of the tile's first query
  std::int64_t first_key = 0;    ///< position of the tile's first key
  std::int64_t window = 0;       ///< 0: all
  float slope = 0.0f;            ///< of ALiBi

  std::int64_t first_seen(std::int64_t i) const {
    return window == 0 ? 0 : std::max<std::int64_t>(0, first_query + i - window + 1 - first_key);
  }
  std::int64_t end_seen(std::int64_t i) const { return first_query + i + 1 - first_key; }
};

/// scores[i, j] <- exp(scores[i, j] + slope·distance − max of the row) for the keys that query i sees, 0 for others;
/// sums[i] = Σ_j.
struct ExponentiateRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> scores, Sight sight, float* sums) {
    for (std::int64_t i = 0; i < scores.rows(); ++i) {
      const std::int64_t begin = sight.first_seen(i);
      const std::int64_t seen = sight.end_seen(i) - begin;
      float* row = scores.row(i) + begin;
      if (sight.slope != 0.0f) {
        for (std::int64_t j = 0; j < seen; ++j) {
          row[j] += sight.slope * static_cast<float>(static_cast<std::int32_t>(j - seen + 1));
        }
      }
      const float highest = cpu::lane_max(row, seen, -std::numeric_limits<float>::infinity());
      for (std::int64_t j = 0; j < seen; ++j) {
        row[j] = cpu::exp_nonpositive(row[j] - highest);
      }
      sums[i] = cpu::lane_sum(seen, [row](std::int64_t j) { return row[j]; });
      std::fill(scores.row(i), row, 0.0f);
      std::fill(row + seen, scores.row(i) + scores.cols(), 0.0f);
    }
  }
};

/// Row i of `out` divided by sums[i].
struct DivideRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> out, const float* sums) {
    for (std::int64_t i = 0; i < out.rows(); ++i) {
      float* row = out.row(i);
      const float factor = 1.0f / sums[i];
      for (std::int64_t c = 0; c < out.cols(); ++c) {
        row[c] *= factor;
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const AttentionArgs& args) {
  require_compute_dtype(args.q.dtype, "attention");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto q = args.q.as<float>();
    const auto k = args.k.as<float>();
    const auto v = args.v.as<float>();
    const auto out = args.out.as<float>();
    const std::int64_t tokens = args.tokens_per_sample;
    const std::int64_t tiles = cpu::tile_count(tokens, tile_queries);
    const std::int64_t samples = q.rows() / tokens;
    const std::int64_t head_stride = args.stride_of_heads();
    pool_.parallel_for(samples * args.heads * tiles, [&](std::int64_t index, int worker) {
      const std::int64_t sample_head = index / tiles;
      // The last queries see most keys: largest pieces first.
      const std::int64_t first = (tiles - 1 - index % tiles) * tile_queries;
      const std::int64_t row = sample_head / args.heads * tokens;
      const std::int64_t head = sample_head % args.heads;
      const std::int64_t kv_head = head / (args.heads / args.kv_heads);
      const std::int64_t queries = std::min(tile_queries, tokens - first);
      const std::int64_t first_key = args.window == 0 ? 0 : std::max<std::int64_t>(0, first - args.window + 1);
      const std::int64_t keys = first + queries - first_key;

      const auto slice = [&](const auto& view, std::int64_t from, std::int64_t count, std::int64_t column) {
        return view.slice_rows(row + from, count).slice_cols(column, args.head_dim);
      };
      const auto q_tile = slice(q, first, queries, head * head_stride);
      const auto k_tile = slice(k, first_key, keys, kv_head * head_stride);
      const auto v_tile = slice(v, first_key, keys, kv_head * head_stride);
      const auto out_tile = slice(out, first, queries, head * args.head_dim);
      float* memory = pool_.scratch<float>(worker, tile_queries * (tokens + 1));
      float* sums = memory + tile_queries * tokens;
      const TensorView<float, 2> scores(memory, {queries, keys});

      blas::gemm(blas::Op::none, blas::Op::transpose, queries, keys, args.head_dim, args.scale, q_tile.data,
                 q_tile.stride, k_tile.data, k_tile.stride, 0.0f, scores.data, scores.stride);
      const Sight sight{.first_query = first,
                        .first_key = first_key,
                        .window = args.window,
                        .slope = args.alibi_slopes ? args.alibi_slopes->data[head] : 0.0f};
      vectorized::call<ExponentiateRows>(level, scores, sight, sums);
      blas::gemm(blas::Op::none, blas::Op::none, queries, args.head_dim, keys, 1.0f, scores.data, scores.stride,
                 v_tile.data, v_tile.stride, 0.0f, out_tile.data, out_tile.stride);
      vectorized::call<DivideRows>(level, out_tile, static_cast<const float*>(sums));
    });
  });
}

}  // namespace gptqd
