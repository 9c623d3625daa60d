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

/// scores[i, j] <- exp(scores[i, j] − max of the row) for the keys j <= first + i, 0 for later ones; sums[i] = Σ_j.
struct ExponentiateRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> scores, std::int64_t first, float* sums) {
    for (std::int64_t i = 0; i < scores.rows(); ++i) {
      float* row = scores.row(i);
      const std::int64_t seen = first + i + 1;
      const float highest = cpu::lane_max(row, seen, -std::numeric_limits<float>::infinity());
      for (std::int64_t j = 0; j < seen; ++j) {
        row[j] = cpu::exp_nonpositive(row[j] - highest);
      }
      sums[i] = cpu::lane_sum(seen, [row](std::int64_t j) { return row[j]; });
      std::fill(row + seen, row + scores.cols(), 0.0f);
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
    pool_.parallel_for(samples * args.heads * tiles, [&](std::int64_t index, int worker) {
      const std::int64_t sample_head = index / tiles;
      // The last queries see most keys: largest pieces first.
      const std::int64_t first = (tiles - 1 - index % tiles) * tile_queries;
      const std::int64_t row = sample_head / args.heads * tokens;
      const std::int64_t head = sample_head % args.heads;
      const std::int64_t kv_head = head / (args.heads / args.kv_heads);
      const std::int64_t queries = std::min(tile_queries, tokens - first);
      const std::int64_t keys = first + queries;

      const auto slice = [&](const auto& view, std::int64_t from, std::int64_t count, std::int64_t which) {
        return view.slice_rows(row + from, count).slice_cols(which * args.head_dim, args.head_dim);
      };
      const auto q_tile = slice(q, first, queries, head);
      const auto k_tile = slice(k, 0, keys, kv_head);
      const auto v_tile = slice(v, 0, keys, kv_head);
      const auto out_tile = slice(out, first, queries, head);
      float* memory = pool_.scratch<float>(worker, tile_queries * (tokens + 1));
      float* sums = memory + tile_queries * tokens;
      const TensorView<float, 2> scores(memory, {queries, keys});

      blas::gemm(blas::Op::none, blas::Op::transpose, queries, keys, args.head_dim, args.scale, q_tile.data,
                 q_tile.stride, k_tile.data, k_tile.stride, 0.0f, scores.data, scores.stride);
      vectorized::call<ExponentiateRows>(level, scores, first, sums);
      blas::gemm(blas::Op::none, blas::Op::none, queries, args.head_dim, keys, 1.0f, scores.data, scores.stride,
                 v_tile.data, v_tile.stride, 0.0f, out_tile.data, out_tile.stride);
      vectorized::call<DivideRows>(level, out_tile, static_cast<const float*>(sums));
    });
  });
}

}  // namespace gptqd
