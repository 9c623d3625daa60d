#include "kernels/linear.hpp"

#include <algorithm>

#include "kernels/cpu/activate.hpp"
#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

// Measured on Zen 5 with AVX-512 kernels: within 2 % of the best height (512 of 64 to 512) and of whole-width tiles,
// and still several tiles for each core where a layer is narrow.
constexpr std::int64_t tile_rows = 512;
constexpr std::int64_t tile_cols = 288;

/// Every row of y <- bias.
struct SetRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> y, const float* bias) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      std::copy_n(bias, y.cols(), y.row(r));
    }
  }
};

/// Every row of y <- row + bias.
struct AddToRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> y, const float* bias) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      float* row = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        row[c] += bias[c];
      }
    }
  }
};

/// y <- activation(y).
template <Activation activation>
struct ActivateRows {
  [[gnu::always_inline]] static void run(TensorView<float, 2> y) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      float* row = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        row[c] = cpu::activate<activation>(row[c]);
      }
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const LinearArgs& args) {
  require_compute_dtype(args.x.dtype, "linear");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto x = args.x.as<float>();
    const auto weight = args.weight.as<float>();
    const auto y = args.y.as<float>();
    const std::int64_t across = cpu::tile_count(y.cols(), tile_cols);
    pool_.parallel_for(cpu::tile_count(y.rows(), tile_rows) * across, [&](std::int64_t tile, int) {
      const std::int64_t row = tile / across * tile_rows;
      const std::int64_t col = tile % across * tile_cols;
      const auto x_tile = x.slice_rows(row, std::min(tile_rows, y.rows() - row));
      const auto weight_tile = weight.slice_rows(col, std::min(tile_cols, y.cols() - col));
      const auto y_tile = y.slice_rows(row, x_tile.rows()).slice_cols(col, weight_tile.rows());
      // The bias comes first: the GEMM then adds to it, which costs no more than adding to zero.
      if (args.bias && args.accumulate) {
        vectorized::call<AddToRows>(level, y_tile, args.bias->data + col);
      } else if (args.bias) {
        vectorized::call<SetRows>(level, y_tile, args.bias->data + col);
      }
      const bool add = args.bias.has_value() || args.accumulate;
      blas::gemm(blas::Op::none, blas::Op::transpose, y_tile.rows(), y_tile.cols(), x.cols(), 1.0f, x_tile.data,
                 x_tile.stride, weight_tile.data, weight_tile.stride, add ? 1.0f : 0.0f, y_tile.data, y_tile.stride);
      if (args.activation != Activation::none) {
        cpu::with_activation(args.activation, [&]<Activation activation>() {
          vectorized::call<ActivateRows<activation>>(level, y_tile);
        });
      }
    });
  });
}

}  // namespace gptqd
