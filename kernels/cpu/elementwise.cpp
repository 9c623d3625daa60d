#include "kernels/elementwise.hpp"

#include <algorithm>

#include "kernels/cpu/conversions.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/dispatch.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

template <class T>
struct AddRows {
  [[gnu::always_inline]] static void run(TensorView<const T, 2> x, TensorView<T, 2> y) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      const T* from = x.row(r);
      T* to = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        to[c] += from[c];
      }
    }
  }
};

template <class From, class To>
struct ConvertRows {
  [[gnu::always_inline]] static void run(TensorView<const From, 2> x, TensorView<To, 2> y) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      const From* from = x.row(r);
      To* to = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        to[c] = cpu::convert_element<To>(from[c]);
      }
    }
  }
};

template <class From, class To>
struct GatherRows {
  [[gnu::always_inline]] static void run(TensorView<const From, 2> x, const std::int32_t* index, TensorView<To, 2> y) {
    for (std::int64_t r = 0; r < y.rows(); ++r) {
      const From* from = x.row(r);
      To* to = y.row(r);
      for (std::int64_t c = 0; c < y.cols(); ++c) {
        to[c] = cpu::convert_element<To>(from[index[c]]);
      }
    }
  }
};

template <class T>
void add(ThreadPool& pool, const AddArgs& args) {
  const auto level = vectorized::best_level();
  const auto x = args.x.as<T>();
  const auto y = args.y.as<T>();
  cpu::for_row_tiles(pool, y.rows(), y.cols(), [&](std::int64_t first, std::int64_t count) {
    vectorized::call<AddRows<T>>(level, x.slice_rows(first, count), y.slice_rows(first, count));
  });
}

template <class From, class To>
void gather_columns(ThreadPool& pool, const GatherColumnsArgs& args) {
  const auto level = vectorized::best_level();
  const auto x = args.x.as<From>();
  const auto y = args.y.as<To>();
  const std::int64_t height = cpu::row_tile_height(y.cols());
  pool.parallel_for(cpu::tile_count(y.rows(), height), [&](std::int64_t tile, int worker) {
    const std::int64_t first = tile * height;
    auto from = x.slice_rows(first, std::min(height, y.rows() - first));
    if (args.in_place()) {
      TensorView<From, 2> copy(pool.scratch<From>(worker, from.rows() * x.cols()), from.shape);
      for (std::int64_t r = 0; r < from.rows(); ++r) {
        std::copy_n(from.row(r), x.cols(), copy.row(r));
      }
      from = copy;
    }
    vectorized::call<GatherRows<From, To>>(level, from, args.index.data, y.slice_rows(first, from.rows()));
  });
}

}  // namespace

void CpuBackend::run(Stream& stream, const AddArgs& args) {
  enqueue(stream, [this, args] {
    if (args.y.dtype == DType::f64) {
      gptqd::add<double>(pool_, args);
    } else {
      gptqd::add<float>(pool_, args);
    }
  });
}

void CpuBackend::run(Stream& stream, const ConvertArgs& args) {
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    cpu::visit_floating(args.x, [&]<class From>(TensorView<const From, 2> x) {
      cpu::visit_floating(args.y, [&]<class To>(TensorView<To, 2> y) {
        cpu::for_row_tiles(pool_, y.rows(), y.cols(), [&](std::int64_t first, std::int64_t count) {
          vectorized::call<ConvertRows<From, To>>(level, x.slice_rows(first, count), y.slice_rows(first, count));
        });
      });
    });
  });
}

void CpuBackend::run(Stream& stream, const GatherColumnsArgs& args) {
  require(args.x.dtype == DType::f32 || args.x.dtype == DType::f64,
          fmt::format("gather_columns: the cpu backend computes in F32 and F64, got {}; convert first",
                      name_of(args.x.dtype)));
  enqueue(stream, [this, args] {
    cpu::check_indices(args.index, args.x.cols(), "gather_columns", "index");
    if (args.x.dtype == DType::f64) {
      gptqd::gather_columns<double, double>(pool_, args);
    } else if (args.y.dtype == DType::f64) {
      gptqd::gather_columns<float, double>(pool_, args);
    } else {
      gptqd::gather_columns<float, float>(pool_, args);
    }
  });
}

}  // namespace gptqd
