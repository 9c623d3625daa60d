#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/rotary.hpp"

namespace gptqd::cuda {

namespace {

/// a / b and a % b; most numbers fit 32 bits, whose division is several times faster. @pre a >= 0, b > 0
__device__ std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if ((a | b) >> 32 == 0) {
    return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
  }
  return a / b;
}
__device__ std::int64_t remainder(std::int64_t a, std::int64_t b) { return a - quotient(a, b) * b; }

/// Column c stands for `width` pairs: of head c / packs, from pair (c % packs)·width on.
template <class T, int width>
struct RotatePack {
  Rows<T> x;
  Rows<const float> cos;
  Rows<const float> sin;
  std::int64_t tokens_per_sample;
  std::int64_t head_dim;
  std::int64_t half;
  std::int64_t packs;

  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const std::int64_t position = remainder(r, tokens_per_sample);
    const std::int64_t head = quotient(c, packs);
    const std::int64_t first = (c - head * packs) * width;
    T* const at_low = x.row(r) + head * head_dim + first;
    T* const at_high = at_low + half;
    auto low = load_pack<width>(at_low);
    auto high = load_pack<width>(at_high);
    for (int i = 0; i < width; ++i) {
      const float cosine = cos.row(position)[first + i];
      const float sine = sin.row(position)[first + i];
      const float a = widen(low.values[i]);
      const float b = widen(high.values[i]);
      low.values[i] = convert_element<T>(a * cosine - b * sine);
      high.values[i] = convert_element<T>(b * cosine + a * sine);
    }
    store_pack<width>(at_low, low);
    store_pack<width>(at_high, high);
  }
};

}  // namespace

void CudaBackend::run(Stream& stream, const RotaryArgs& args) {
  enqueue(stream, "rotary", [&](CudaStream& own) {
    const std::int64_t half = args.cos.cols();
    const std::int64_t heads = args.x.cols() / args.head_dim;
    if (half == 0) {
      return;
    }
    with_compute_type(args.x.dtype, [&]<class T>() {
      const auto launch = [&]<int width>() {
        const std::int64_t packs = half / width;
        for_elements(own, args.x.rows(), heads * packs,
                     RotatePack<T, width>{Rows<T>(args.x), Rows<const float>(args.cos), Rows<const float>(args.sin),
                                          args.tokens_per_sample, args.head_dim, half, packs});
      };
      constexpr int width = full_width<T>;
      if (half % width == 0 && args.head_dim % width == 0 && allows_packs(width, args.x)) {
        launch.template operator()<width>();
      } else {
        launch.template operator()<1>();
      }
    });
  });
}

}  // namespace gptqd::cuda
