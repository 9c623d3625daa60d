#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/embedding.hpp"

namespace gptqd::cuda {

namespace {

constexpr int embedding_width = 4;

/// An id outside the table leaves its row as it is: expect_inside() reports it.
template <class From, class To, int width, bool accumulate>
struct TakePack {
  const std::int32_t* ids;
  Rows<const From> table;
  std::int64_t entries;
  Rows<To> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const std::int64_t id = ids[r];
    if (id < 0 || id >= entries) {
      return;
    }
    const auto from = load_pack<width>(table.row(id) + c * width);
    To* const at = y.row(r) + c * width;
    Pack<To, width> to;
    if constexpr (accumulate) {
      to = load_pack<width>(at);
      for (int i = 0; i < width; ++i) {
        to.values[i] = convert_element<To>(widen(to.values[i]) + convert_element<float>(from.values[i]));
      }
    } else {
      for (int i = 0; i < width; ++i) {
        to.values[i] = convert_element<To>(from.values[i]);
      }
    }
    store_pack<width>(at, to);
  }
};

}  // namespace

void CudaBackend::run(Stream& stream, const EmbeddingArgs& args) {
  enqueue(stream, "embedding", [&](CudaStream& own) {
    const std::int64_t entries = args.table.rows();
    expect_inside(own, args.ids, 0, entries, [entries](const Finding& found) {
      return fmt::format("embedding: id {} of token {} lies outside the table's {} entries", found.value,
                         found.position, entries);
    });
    with_floating_type(args.table.dtype, [&]<class From>() {
      with_compute_type(args.y.dtype, [&]<class To>() {
        const auto launch = [&]<int width, bool accumulate>() {
          for_elements(own, args.y.rows(), args.y.cols() / width,
                       TakePack<From, To, width, accumulate>{args.ids.data, Rows<const From>(args.table), entries,
                                                             Rows<To>(args.y)});
        };
        const bool packs = args.y.cols() % embedding_width == 0 && allows_packs(embedding_width, args.table, args.y);
        if (args.accumulate) {
          packs ? launch.template operator()<embedding_width, true>() : launch.template operator()<1, true>();
        } else {
          packs ? launch.template operator()<embedding_width, false>() : launch.template operator()<1, false>();
        }
      });
    });
  });
}

}  // namespace gptqd::cuda
