#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/run_of_elements.cuh"
#include "kernels/layer_norm.hpp"

namespace gptqd::cuda {

namespace {

/// Two passes for the moments, then one for the result, in fp32.
template <class T, class Layout>
__global__ void __launch_bounds__(run_block)
    normalize(Rows<const T> x, std::int64_t rows, std::int64_t d, const float* weight, const float* bias, float epsilon,
              Rows<T> y) {
  constexpr int runs = run_block / Layout::threads;
  using Sum = RunSum<T>;
  const std::int64_t row = std::int64_t{blockIdx.x} * runs + threadIdx.x / Layout::threads;
  if (row >= rows) {
    return;  // a whole warp, or the whole block
  }
  const RunOfElements<T, Layout> run(x.row(row), d);
  const Sum mean = run.template sum<Sum>([](Sum value) { return value; }) / static_cast<Sum>(d);
  const Sum squares = run.template sum<Sum>([mean](Sum value) { return (value - mean) * (value - mean); });
  const auto center = static_cast<float>(mean);
  const auto scale =
      static_cast<float>(static_cast<Sum>(1) / sqrt(squares / static_cast<Sum>(d) + static_cast<Sum>(epsilon)));
  T* const to = y.row(row);
  run.each([&](std::int64_t first, const auto& pack) {
    const auto factors = load_pack<Layout::width>(weight + first);
    const auto terms = load_pack<Layout::width>(bias + first);
    Pack<T, Layout::width> result;
    for (int i = 0; i < Layout::width; ++i) {
      const float value = (widen(pack.values[i]) - center) * scale;
      result.values[i] = convert_element<T>(value * factors.values[i] + terms.values[i]);
    }
    store_pack<Layout::width>(to + first, result);
  });
}

}  // namespace

void CudaBackend::run(Stream& stream, const LayerNormArgs& args) {
  enqueue(stream, "layer_norm", [&](CudaStream& own) {
    const std::int64_t rows = args.x.rows();
    const std::int64_t d = args.x.cols();
    if (args.x.size() == 0) {
      return;
    }
    with_compute_type(args.x.dtype, [&]<class T>() {
      with_run_layout<T>(
          d, allows_packs(full_width<T>, args.x, args.y, ConstAnyView<1>(args.weight), ConstAnyView<1>(args.bias)),
          [&]<class Layout>() {
            const auto blocks = grid_size(divide_up(rows, run_block / Layout::threads));
            normalize<T, Layout><<<blocks, run_block, 0, own.stream()>>>(
                Rows<const T>(args.x), rows, d, args.weight.data, args.bias.data, args.epsilon, Rows<T>(args.y));
          });
    });
  });
}

}  // namespace gptqd::cuda
