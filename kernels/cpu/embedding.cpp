#include "kernels/embedding.hpp"

#include "kernels/cpu/conversions.hpp"
#include "kernels/cpu/cpu_backend.hpp"
#include "kernels/cpu/tiles.hpp"
#include "kernels/cpu/vectorized.hpp"

namespace gptqd {

namespace {

template <class T>
struct CopyRow {
  [[gnu::always_inline]] static void run(const T* from, float* to, std::int64_t cols) {
    for (std::int64_t c = 0; c < cols; ++c) {
      to[c] = cpu::convert_element<float>(from[c]);
    }
  }
};

template <class T>
struct AddRow {
  [[gnu::always_inline]] static void run(const T* from, float* to, std::int64_t cols) {
    for (std::int64_t c = 0; c < cols; ++c) {
      to[c] += cpu::convert_element<float>(from[c]);
    }
  }
};

}  // namespace

void CpuBackend::run(Stream& stream, const EmbeddingArgs& args) {
  require_compute_dtype(args.y.dtype, "embedding");
  enqueue(stream, [this, args] {
    const auto level = vectorized::best_level();
    const auto y = args.y.as<float>();
    cpu::visit_floating(args.table, [&]<class T>(TensorView<const T, 2> table) {
      cpu::for_row_tiles(pool_, y.rows(), y.cols(), [&](std::int64_t first, std::int64_t count) {
        for (std::int64_t t = first; t < first + count; ++t) {
          const std::int64_t id = args.ids(t);
          if (id < 0 || id >= table.rows()) {
            throw Error(
                ErrorKind::internal,
                fmt::format("embedding: id {} of token {} lies outside the table's {} entries", id, t, table.rows()));
          }
          if (args.accumulate) {
            vectorized::call<AddRow<T>>(level, table.row(id), y.row(t), y.cols());
          } else {
            vectorized::call<CopyRow<T>>(level, table.row(id), y.row(t), y.cols());
          }
        }
      });
    });
  });
}

}  // namespace gptqd
