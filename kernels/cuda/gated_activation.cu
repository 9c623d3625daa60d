#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/gated_activation.hpp"

namespace gptqd::cuda {

namespace {

template <class T, int width, Activation activation>
struct GatePack {
  Rows<const T> gate;
  Rows<const T> up;
  Rows<T> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const auto g = load_pack<width>(gate.row(r) + c * width);
    const auto u = load_pack<width>(up.row(r) + c * width);
    Pack<T, width> to;
    for (int i = 0; i < width; ++i) {
      to.values[i] = convert_element<T>(activate<activation>(widen(g.values[i])) * widen(u.values[i]));
    }
    store_pack<width>(y.row(r) + c * width, to);
  }
};

}  // namespace

void CudaBackend::run(Stream& stream, const GatedActivationArgs& args) {
  enqueue(stream, "gated_activation", [&](CudaStream& own) {
    with_compute_type(args.y.dtype, [&]<class T>() {
      with_activation(args.activation, [&]<Activation activation>() {
        const auto launch = [&]<int width>() {
          for_elements(
              own, args.y.rows(), args.y.cols() / width,
              GatePack<T, width, activation>{Rows<const T>(args.gate), Rows<const T>(args.up), Rows<T>(args.y)});
        };
        constexpr int width = full_width<T>;
        if (args.y.cols() % width == 0 && allows_packs(width, args.gate, args.up, args.y)) {
          launch.template operator()<width>();
        } else {
          launch.template operator()<1>();
        }
      });
    });
  });
}

}  // namespace gptqd::cuda
