#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/run_of_elements.cuh"
#include "kernels/rms_norm.hpp"

namespace gptqd::cuda {

namespace {

template <class T, class Layout>
__global__ void __launch_bounds__(run_block) normalize(Rows<const T> x, std::int64_t runs, std::int64_t runs_a_row,
                                                       std::int64_t d, const float* weight, float epsilon, Rows<T> y) {
  constexpr int runs_a_block = run_block / Layout::threads;
  using Sum = RunSum<T>;
  const std::int64_t index = std::int64_t{blockIdx.x} * runs_a_block + threadIdx.x / Layout::threads;
  if (index >= runs) {
    return;  // a whole warp, or the whole block
  }
  const std::int64_t row = index / runs_a_row;
  const std::int64_t start = index % runs_a_row * d;
  const RunOfElements<T, Layout> run(x.row(row) + start, d);
  const Sum squares = run.template sum<Sum>([](Sum value) { return value * value; });
  const auto scale =
      static_cast<float>(static_cast<Sum>(1) / sqrt(squares / static_cast<Sum>(d) + static_cast<Sum>(epsilon)));
  T* const to = y.row(row) + start;
  run.each([&](std::int64_t first, const auto& pack) {
    const auto factors = load_pack<Layout::width>(weight + first);
    Pack<T, Layout::width> result;
    for (int i = 0; i < Layout::width; ++i) {
      const T quotient = convert_element<T>(widen(pack.values[i]) * scale);
      result.values[i] = convert_element<T>(widen(quotient) * factors.values[i]);
    }
    store_pack<Layout::width>(to + first, result);
  });
}

}  // namespace

void CudaBackend::run(Stream& stream, const RmsNormArgs& args) {
  enqueue(stream, "rms_norm", [&](CudaStream& own) {
    const std::int64_t d = args.weight.rows();
    const std::int64_t runs_a_row = args.x.cols() / d;
    const std::int64_t runs = args.x.rows() * runs_a_row;
    if (runs == 0) {
      return;
    }
    with_compute_type(args.x.dtype, [&]<class T>() {
      with_run_layout<T>(
          d, allows_packs(full_width<T>, args.x, args.y, ConstAnyView<1>(args.weight)), [&]<class Layout>() {
            const auto blocks = grid_size(divide_up(runs, run_block / Layout::threads));
            normalize<T, Layout><<<blocks, run_block, 0, own.stream()>>>(
                Rows<const T>(args.x), runs, runs_a_row, d, args.weight.data, args.epsilon, Rows<T>(args.y));
          });
    });
  });
}

}  // namespace gptqd::cuda
