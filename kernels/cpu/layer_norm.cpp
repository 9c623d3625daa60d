#include "kernels/layer_norm.hpp"

#include <cmath>

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/lane_sums.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

/// Two passes for the moments, in fp64 lanes, then one for the result, in fp32.
struct NormalizeRows {
  [[gnu::always_inline]] static void run(ConstTensorView<float, 2> x, const float* weight, const float* bias,
                                         float epsilon, TensorView<float, 2> y) {
    const auto d = x.cols();
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      const float* from = x.row(r);
      float* to = y.row(r);
      const double mean =
          cpu::lane_sum(d, [from](std::int64_t i) { return static_cast<double>(from[i]); }) / static_cast<double>(d);
      const double squares = cpu::lane_sum(d, [from, mean](std::int64_t i) {
        const double deviation = static_cast<double>(from[i]) - mean;
        return deviation * deviation;
      });
      const auto center = static_cast<float>(mean);
      const auto scale =
          static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(epsilon)));
      for (std::int64_t i = 0; i < d; ++i) {
        to[i] = (from[i] - center) * scale * weight[i] + bias[i];
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const LayerNormArgs& args) {
  require_compute_dtype(args.x.dtype, "layer_norm");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto x = args.x.as<float>();
    const auto y = args.y.as<float>();
    cpu::for_row_tiles(pool_, x.rows(), x.cols(), [&](std::int64_t first, std::int64_t count) {
      vectorized::call<NormalizeRows>(level, x.slice_rows(first, count), args.weight.data, args.bias.data, args.epsilon,
                                      y.slice_rows(first, count));
    });
  });
}

}  // namespace gptqd
