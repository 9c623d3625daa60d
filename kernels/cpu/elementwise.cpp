#include "kernels/elementwise.hpp"

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
  cpu::for_row_tiles(pool, y.rows(), y.cols(), [&](std::int64_t first, std::int64_t count) {
    vectorized::call<GatherRows<From, To>>(level, x.slice_rows(first, count), args.index.data,
                                           y.slice_rows(first, count));
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
