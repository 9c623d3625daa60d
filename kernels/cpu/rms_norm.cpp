#include "kernels/rms_norm.hpp"

#include <cmath>

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/lane_sums.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

/// The mean square in fp64 lanes, the result in fp32.
struct RmsNormalizeRows {
  [[gnu::always_inline]] static void run(ConstTensorView<float, 2> x, ConstTensorView<float, 1> weight, float epsilon,
                                         TensorView<float, 2> y) {
    const auto d = weight.rows();
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      for (std::int64_t start = 0; start < x.cols(); start += d) {
        const float* from = x.row(r) + start;
        float* to = y.row(r) + start;
        const double squares = cpu::lane_sum(d, [from](std::int64_t i) {
          const double value = static_cast<double>(from[i]);
          return value * value;
        });
        const auto scale =
            static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(epsilon)));
        for (std::int64_t i = 0; i < d; ++i) {
          to[i] = from[i] * scale * weight.data[i];
        }
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const RmsNormArgs& args) {
  require_compute_dtype(args.x.dtype, "rms_norm");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto x = args.x.as<float>();
    const auto y = args.y.as<float>();
    cpu::for_row_tiles(pool_, x.rows(), x.cols(), [&](std::int64_t first, std::int64_t count) {
      vectorized::call<RmsNormalizeRows>(level, x.slice_rows(first, count), args.weight, args.epsilon,
                                         y.slice_rows(first, count));
    });
  });
}

}  // namespace gptqd
