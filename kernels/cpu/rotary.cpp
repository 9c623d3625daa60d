#include "kernels/rotary.hpp"

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

/// Row r of x has position (first + r) mod tokens_per_sample.
struct RotateRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> x, std::int64_t first, const RotaryArgs* args) {
    const std::int64_t half = args->cos.cols();
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      const std::int64_t position = (first + r) % args->tokens_per_sample;
      const float* cos = args->cos.row(position);
      const float* sin = args->sin.row(position);
      for (std::int64_t column = 0; column < x.cols(); column += args->head_dim) {
        float* low = x.row(r) + column;
        float* high = low + half;
        for (std::int64_t i = 0; i < half; ++i) {
          const float a = low[i];
          const float b = high[i];
          low[i] = a * cos[i] - b * sin[i];
          high[i] = b * cos[i] + a * sin[i];
        }
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const RotaryArgs& args) {
  require_compute_dtype(args.x.dtype, "rotary");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto x = args.x.as<float>();
    cpu::for_row_tiles(pool_, x.rows(), x.cols(), [&](std::int64_t first, std::int64_t count) {
      vectorized::call<RotateRows>(level, x.slice_rows(first, count), first, &args);
    });
  });
}

}  // namespace gptqd
