#include "kernels/grid.hpp"

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/grid_search.hpp"
#include "kernels/cpu/group_blocks.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t rows_of_a_tile = 16;

template <class T>
void run_find_grids(ThreadPool& pool, const FindGridsArgs& args) {
  const auto weights = args.weights.as<T>();
  const cpu::GroupColumns groups(args.group, args.member, args.scales.cols(), "find_grids");
  const cpu::GroupBlocks<T> blocks(args.spec.clip == Clip::hessian ? args.blocks : ConstTensorView<float, 3>{}, groups,
                                   "find_grids");
  pool.parallel_for(cpu::tile_count(weights.rows(), rows_of_a_tile), [&](std::int64_t tile, int worker) {
    cpu::GridSearch<T> search(args.spec);
    T* const gathered = pool.scratch<T>(worker, groups.largest());
    const auto last_row = std::min(weights.rows(), (tile + 1) * rows_of_a_tile);
    for (auto r = tile * rows_of_a_tile; r < last_row; ++r) {
      for (std::int64_t g = 0; g < groups.groups(); ++g) {
        const auto columns = groups.columns(g);
        for (std::size_t k = 0; k < columns.size(); ++k) {
          gathered[k] = weights(r, columns[k]);
        }
        const auto grid =
            search.find(gathered, static_cast<std::int64_t>(columns.size()), blocks.of(g), blocks.stride());
        args.scales(r, g) = grid.scale;
        args.zeros(r, g) = grid.zero;
      }
    }
  });
}

/// One row, with the scale and zero of each column.
template <class T>
struct RoundRow {
  [[gnu::always_inline]] static inline void run(const T* __restrict__ weights, const T* __restrict__ scales,
                                                const T* __restrict__ zeros, std::int64_t n, T highest,
                                                std::uint8_t* __restrict__ codes, T* __restrict__ delta) {
    for (std::int64_t c = 0; c < n; ++c) {
      const T code = vectorized::code_of(weights[c], scales[c], zeros[c], highest);
      codes[c] = static_cast<std::uint8_t>(static_cast<std::int32_t>(code));
      delta[c] = scales[c] * (code - zeros[c]) - weights[c];
    }
  }
};

template <class T>
void run_round_to_grids(ThreadPool& pool, const RoundToGridsArgs& args) {
  const auto weights = args.weights.as<T>();
  const auto delta = args.delta.as<T>();
  const auto n = weights.cols();
  const auto level = vectorized::best_level();
  const T highest = static_cast<T>((1 << args.bits) - 1);
  cpu::check_indices(args.group, args.scales.cols(), "round_to_grids", "group");
  pool.parallel_for(cpu::tile_count(weights.rows(), rows_of_a_tile), [&](std::int64_t tile, int worker) {
    T* const scales = pool.scratch<T>(worker, 2 * n);
    T* const zeros = scales + n;
    const auto last_row = std::min(weights.rows(), (tile + 1) * rows_of_a_tile);
    for (auto r = tile * rows_of_a_tile; r < last_row; ++r) {
      for (std::int64_t c = 0; c < n; ++c) {
        scales[c] = static_cast<T>(args.scales(r, args.group(c)));
        zeros[c] = static_cast<T>(args.zeros(r, args.group(c)));
      }
      const T* const row = weights.row(r);
      vectorized::call<RoundRow<T>, const T*, const T*, const T*>(level, row, scales, zeros, n, highest,
                                                                  args.codes.row(r), delta.row(r));
    }
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const FindGridsArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.weights.dtype, "find_grids",
                        [&](auto type) { run_find_grids<decltype(type)>(pool(), args); });
  });
}

void CpuBackend::run(Stream& stream, const RoundToGridsArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.weights.dtype, "round_to_grids",
                        [&](auto type) { run_round_to_grids<decltype(type)>(pool(), args); });
  });
}

}  // namespace gptqd
