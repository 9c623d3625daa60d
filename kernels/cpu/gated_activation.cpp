#include "kernels/gated_activation.hpp"

#include "kernels/cpu/activate.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

template <Activation activation>
struct GateRows {
  [[gnu::always_inline]] static void run(ConstTensorView<float, 2> gate, ConstTensorView<float, 2> up,
                                         TensorView<float, 2> y) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      const float* g = gate.row(r);
      const float* u = up.row(r);
      float* to = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        to[c] = cpu::activate<activation>(g[c]) * u[c];
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const GatedActivationArgs& args) {
  require_compute_dtype(args.gate.dtype, "gated_activation");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto gate = args.gate.as<float>();
    const auto up = args.up.as<float>();
    const auto y = args.y.as<float>();
    cpu::with_activation(args.activation, [&]<Activation activation>() {
      cpu::for_row_tiles(pool_, y.rows(), y.cols(), [&](std::int64_t first, std::int64_t count) {
        vectorized::call<GateRows<activation>>(level, gate.slice_rows(first, count), up.slice_rows(first, count),
                                               y.slice_rows(first, count));
      });
    });
  });
}

}  // namespace gptqd
