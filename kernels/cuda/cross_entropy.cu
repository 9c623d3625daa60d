#include <limits>

#include "kernels/cross_entropy.hpp"
#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul.hpp"

namespace gptqd::cuda {

namespace {

/// Logits held at once.
constexpr std::int64_t tile_tokens = 2048;
constexpr std::int64_t tile_vocabulary = 8192;
constexpr int row_threads = 256;

/// log Σ exp of the logits seen so far is highest + log(sum).
struct RunningSum {
  double sum;
  float highest;
  float target_logit;
};

/// One block a token: adds a tile of its logits, the words from first_word on.
__global__ void __launch_bounds__(row_threads)
    add_tile(const float* logits, std::int64_t words, std::int64_t first_word, const std::int32_t* targets,
             RunningSum* running) {
  const std::int64_t token = blockIdx.x;
  const float* const row = logits + token * words;
  RunningSum state = first_word == 0 ? RunningSum{0.0, -INFINITY, 0.0f} : running[token];
  float highest = state.highest;
  for (std::int64_t i = threadIdx.x; i < words; i += row_threads) {
    highest = fmaxf(highest, row[i]);
  }
  highest = reduce<row_threads>(highest, Maximum{});
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < words; i += row_threads) {
    sum += static_cast<double>(expf(row[i] - highest));
  }
  sum = reduce<row_threads>(sum, Plus{});
  if (threadIdx.x == 0) {
    if (state.sum != 0.0) {
      sum += state.sum * exp(static_cast<double>(state.highest) - static_cast<double>(highest));
    }
    state.sum = sum;
    state.highest = highest;
    const std::int64_t target = targets[token] - first_word;
    if (target >= 0 && target < words) {
      state.target_logit = row[target];
    }
    running[token] = state;
  }
}

struct Finish {
  const RunningSum* running;
  const std::int32_t* targets;
  double* nll;
  __device__ void operator()(std::int64_t, std::int64_t token) const {
    const RunningSum state = running[token];
    nll[token] = targets[token] < 0
                     ? 0.0
                     : log(state.sum) + static_cast<double>(state.highest) - static_cast<double>(state.target_logit);
  }
};

}  // namespace

void CudaBackend::run(Stream& stream, const CrossEntropyArgs& args) {
  enqueue(stream, "cross_entropy", [&](CudaStream& own) {
    const std::int64_t tokens = args.x.rows();
    const std::int64_t vocabulary = args.head.rows();
    constexpr std::int64_t no_word = std::numeric_limits<std::int32_t>::min();
    expect_inside(own, args.targets, no_word, vocabulary, [vocabulary](const Finding& found) {
      return fmt::format("cross_entropy: target {} of token {} lies outside the vocabulary of {}", found.value,
                         found.position, vocabulary);
    });
    constexpr std::int64_t logit_bytes = tile_tokens * tile_vocabulary * static_cast<std::int64_t>(sizeof(float));
    constexpr std::int64_t running_bytes = tile_tokens * static_cast<std::int64_t>(sizeof(RunningSum));
    auto* const logits = static_cast<float*>(own.scratch(logit_bytes + running_bytes));
    auto* const running = reinterpret_cast<RunningSum*>(logits + tile_tokens * tile_vocabulary);
    for (std::int64_t first = 0; first < tokens; first += tile_tokens) {
      const auto x = args.x.slice_rows(first, std::min(tile_tokens, tokens - first));
      for (std::int64_t word = 0; word < vocabulary; word += tile_vocabulary) {
        const auto head = args.head.slice_rows(word, std::min(tile_vocabulary, vocabulary - word));
        const TensorView<float, 2> tile(logits, {x.rows(), head.rows()});
        if (x.cols() == 0) {
          check(cudaMemsetAsync(logits, 0, static_cast<std::size_t>(tile.size()) * sizeof(float), own.stream()),
                "cross_entropy");
        } else {
          product(own, x, head, tile);
        }
        add_tile<<<grid_size(x.rows()), row_threads, 0, own.stream()>>>(logits, head.rows(), word,
                                                                        args.targets.data + first, running);
      }
      for_elements(own, 1, x.rows(), Finish{running, args.targets.data + first, args.nll.data + first});
    }
  });
}

}  // namespace gptqd::cuda
