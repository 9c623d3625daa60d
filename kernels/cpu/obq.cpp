#include "kernels/obq.hpp"

#include <algorithm>
#include <numeric>

#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

/// One row's state: the inverse and weights of the columns that are left, `index` says which these are.
struct ObqRow {
  std::int64_t stride;
  double* inverse;  // [n, stride]
  double* weights;  // [n]
  std::int32_t* index;
};

/// Removes entry `p` of `count`: weights −= error·inverse[p], inverse −= its rank-1 part; the last entry takes its
/// place.
struct RemoveColumn {
  [[gnu::always_inline]] static inline void run(const ObqRow* row, std::int64_t count, std::int64_t p, double error) {
    const double* __restrict__ const removed = row->inverse + p * row->stride;
    const double pivot = removed[p];
    for (std::int64_t j = 0; j < count; ++j) {
      row->weights[j] -= error * removed[j];
    }
    for (std::int64_t i = 0; i < count; ++i) {
      if (i == p) {
        continue;
      }
      double* __restrict__ const entries = row->inverse + i * row->stride;
      const double factor = entries[p] / pivot;
      for (std::int64_t j = 0; j < count; ++j) {
        entries[j] -= factor * removed[j];
      }
      entries[p] = entries[count - 1];
    }
    std::copy_n(row->inverse + (count - 1) * row->stride, count - 1, row->inverse + p * row->stride);
    row->weights[p] = row->weights[count - 1];
    row->index[p] = row->index[count - 1];
  }
};

template <class T>
void run_obq(ThreadPool& pool, const ObqArgs& args) {
  const auto weights = args.weights.as<T>();
  const auto delta = args.delta.as<T>();
  const auto n = weights.cols();
  const auto level = vectorized::best_level();
  const auto highest = static_cast<double>((1 << args.bits) - 1);
  cpu::check_indices(args.group, args.scales.cols(), "obq", "group");
  pool.parallel_for(weights.rows(), [&](std::int64_t r, int worker) {
    ObqRow row{};
    row.stride = n;
    row.inverse = pool.scratch<double>(worker, n * n + 2 * n);
    row.weights = row.inverse + n * n;
    row.index = reinterpret_cast<std::int32_t*>(row.weights + n);
    for (std::int64_t i = 0; i < n; ++i) {
      std::copy_n(args.inverse.row(i), n, row.inverse + i * n);
      row.weights[i] = static_cast<double>(weights(r, i));
    }
    std::iota(row.index, row.index + n, 0);
    for (auto count = n; count > 0; --count) {
      std::int64_t best = 0;
      double least = 0;
      double best_code = 0;
      double best_move = 0;
      for (std::int64_t p = 0; p < count; ++p) {
        const auto g = args.group(row.index[p]);
        const auto scale = static_cast<double>(args.scales(r, g));
        const auto zero = static_cast<double>(args.zeros(r, g));
        const double code = vectorized::code_of(row.weights[p], scale, zero, highest);
        const double move = scale * (code - zero) - row.weights[p];
        const double cost = move * move / row.inverse[p * n + p];
        if (p == 0 || cost < least || (cost == least && row.index[p] < row.index[best])) {
          best = p;
          least = cost;
          best_code = code;
          best_move = move;
        }
      }
      const auto column = row.index[best];
      const auto g = args.group(column);
      const double rounded =
          static_cast<double>(args.scales(r, g)) * (best_code - static_cast<double>(args.zeros(r, g)));
      args.codes(r, column) = static_cast<std::uint8_t>(best_code);
      delta(r, column) = static_cast<T>(rounded - static_cast<double>(weights(r, column)));
      vectorized::call<RemoveColumn>(level, &row, count, best, -best_move / row.inverse[best * n + best]);
    }
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const ObqArgs& args) {
  enqueue(stream, [this, args] {
    cpu::with_real_type(args.weights.dtype, "obq", [&](auto type) { run_obq<decltype(type)>(pool(), args); });
  });
}

}  // namespace gptqd
