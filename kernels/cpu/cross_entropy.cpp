#include "kernels/cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/exponential.hpp"
#include "kernels/cpu/lane_sums.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t tile_tokens = 128;
constexpr std::int64_t tile_vocabulary = 1024;

/// log Σ exp of the logits seen so far is highest + log(sum).
struct RunningSum {
  float highest = -std::numeric_limits<float>::infinity();
  double sum = 0.0;
  double target_logit = 0.0;
};

/// Adds a chunk of logits to each row's sum; `logits` is overwritten.
struct AddChunk {
  [[gnu::always_inline]] static void run(TensorView<float, 2> logits, RunningSum* running) {
    for (std::int64_t i = 0; i < logits.rows(); ++i) {
      float* row = logits.row(i);
      RunningSum& state = running[i];
      const float highest = cpu::lane_max(row, logits.cols(), state.highest);
      for (std::int64_t j = 0; j < logits.cols(); ++j) {
        row[j] = cpu::exp_nonpositive(row[j] - highest);
      }
      const double sum = cpu::lane_sum(logits.cols(), [row](std::int64_t j) { return static_cast<double>(row[j]); });
      const double before =
          state.sum == 0.0 ? 0.0
                           : state.sum * std::exp(static_cast<double>(state.highest) - static_cast<double>(highest));
      state.sum = before + sum;
      state.highest = highest;
    }
  }
};

void check_targets(const CrossEntropyArgs& args) {
  for (std::int64_t t = 0; t < args.targets.rows(); ++t) {
    if (args.targets(t) >= args.head.rows()) {
      throw Error(ErrorKind::internal,
                  fmt::format("cross_entropy: target {} of token {} lies outside the vocabulary of {}", args.targets(t),
                              t, args.head.rows()));
    }
  }
}

}  // namespace

void CpuBackend::run(Stream& stream, const CrossEntropyArgs& args) {
  require_compute_dtype(args.x.dtype, "cross_entropy");
  enqueue(stream, [this, args] {
    check_targets(args);
    const auto level = vectorized::best_level();
    const auto x = args.x.as<float>();
    const auto head = args.head.as<float>();
    pool_.parallel_for(cpu::tile_count(x.rows(), tile_tokens), [&](std::int64_t tile, int worker) {
      const std::int64_t first = tile * tile_tokens;
      const auto x_tile = x.slice_rows(first, std::min(tile_tokens, x.rows() - first));
      const std::int64_t tokens = x_tile.rows();
      float* memory = pool_.scratch<float>(worker, tile_tokens * tile_vocabulary);
      std::vector<RunningSum> running(static_cast<std::size_t>(tokens));
      for (std::int64_t word = 0; word < head.rows(); word += tile_vocabulary) {
        const auto head_tile = head.slice_rows(word, std::min(tile_vocabulary, head.rows() - word));
        const TensorView<float, 2> logits(memory, {tokens, head_tile.rows()});
        blas::gemm(blas::Op::none, blas::Op::transpose, tokens, logits.cols(), x.cols(), 1.0f, x_tile.data,
                   x_tile.stride, head_tile.data, head_tile.stride, 0.0f, logits.data, logits.stride);
        for (std::int64_t t = 0; t < tokens; ++t) {
          const std::int64_t target = args.targets(first + t) - word;
          if (target >= 0 && target < logits.cols()) {
            running[static_cast<std::size_t>(t)].target_logit = static_cast<double>(logits(t, target));
          }
        }
        vectorized::call<AddChunk>(level, logits, running.data());
      }
      for (std::int64_t t = 0; t < tokens; ++t) {
        const RunningSum& state = running[static_cast<std::size_t>(t)];
        args.nll(first + t) = args.targets(first + t) < 0
                                  ? 0.0
                                  : std::log(state.sum) + static_cast<double>(state.highest) - state.target_logit;
      }
    });
  });
}

}  // namespace gptqd
