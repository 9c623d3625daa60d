#include "kernels/factor.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t solve_rows = 128;   // rows of one triangular solve
constexpr std::int64_t update_tile = 256;  // rows and columns of one trailing update

/// Factors the diagonal block; 0 or the 1-based leading minor that fails. LAPACK lets NaN pass, this does not.
template <class T>
std::int64_t factor_diagonal_block(TensorView<T, 2> panel) {
  const auto w = panel.cols();
  const auto status = blas::potrf(blas::Triangle::lower, w, panel.data, panel.stride);
  if (status != 0) {
    return status;
  }
  for (std::int64_t c = 0; c < w; ++c) {
    if (!(panel(c, c) > 0) || !std::isfinite(panel(c, c))) {
      return c + 1;
    }
    std::fill(panel.row(c) + c + 1, panel.row(c) + w, T{0});
  }
  return 0;
}

template <class T>
void run_factor_panel(ThreadPool& pool, const FactorPanelArgs& args) {
  const auto panel = args.panel.as<T>();
  const auto w = panel.cols();
  pool.parallel_for(
      1, [&](std::int64_t, int) { args.status(0) = static_cast<std::int32_t>(factor_diagonal_block(panel)); });
  if (args.status(0) != 0) {
    return;
  }
  pool.parallel_for(cpu::tile_count(panel.rows() - w, solve_rows), [&](std::int64_t tile, int) {
    const auto row = w + tile * solve_rows;
    blas::trsm(blas::Side::right, blas::Triangle::lower, blas::Op::transpose, std::min(solve_rows, panel.rows() - row),
               w, T{1}, panel.data, panel.stride, panel.row(row), panel.stride);
  });
}

template <class T>
void run_update_panel(ThreadPool& pool, const UpdatePanelArgs& args) {
  const auto rows = args.rows.as<T>();
  const auto top = args.top.as<T>();
  const auto target = args.target.as<T>();
  const auto across = cpu::tile_count(target.cols(), update_tile);
  pool.parallel_for(cpu::tile_count(target.rows(), update_tile) * across, [&](std::int64_t tile, int) {
    const auto row = tile / across * update_tile;
    const auto col = tile % across * update_tile;
    if (col > row) {
      return;  // above the diagonal
    }
    blas::gemm(blas::Op::none, blas::Op::transpose, std::min(update_tile, target.rows() - row),
               std::min(update_tile, target.cols() - col), rows.cols(), T{-1}, rows.row(row), rows.stride, top.row(col),
               top.stride, T{1}, &target(row, col), target.stride);
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const FactorPanelArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.panel.dtype, "factor_panel",
                        [&](auto type) { run_factor_panel<decltype(type)>(pool(), args); });
  });
}

void CpuBackend::run(Stream& stream, const UpdatePanelArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.rows.dtype, "update_panel",
                        [&](auto type) { run_update_panel<decltype(type)>(pool(), args); });
  });
}

}  // namespace gptqd
