#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/row_statistics.hpp"

namespace gptqd::cuda {

namespace {

constexpr int threads = 256;

struct RowInputs {
  const std::uint8_t* codes;
  std::int64_t codes_stride;
  const std::int32_t* group;
  const float* scales;
  std::int64_t scales_stride;
  std::int64_t groups;
  const double* extra;  ///< null: none
};
struct RowResults {
  double* damping_share;
  std::int32_t* saturated;
  std::int32_t* non_finite;
  float* min_scale;
  float* max_scale;
};

/// One block a row.
template <class T>
__global__ void __launch_bounds__(threads)
    measure_rows(int last, Rows<const T> delta, std::int64_t n, RowInputs in, RowResults out) {
  const std::int64_t r = blockIdx.x;
  const T* errors = delta.row(r);
  const std::uint8_t* codes = in.codes + r * in.codes_stride;
  const float* scales = in.scales + r * in.scales_stride;
  double share = 0;
  std::int32_t saturated = 0;
  std::int32_t non_finite = 0;
  for (std::int64_t a = threadIdx.x; a < n; a += threads) {
    const auto error = static_cast<double>(errors[a]);
    if (codes[a] == 0 || codes[a] == last) {
      const double half_step = 0.5 * static_cast<double>(scales[in.group[a]]);
      saturated += fabs(error) > half_step * (1 + 1e-6) ? 1 : 0;
    }
    non_finite += isfinite(error) ? 0 : 1;
    if (in.extra != nullptr) {
      share += in.extra[a] * error * error;
    }
  }
  float least = scales[0];
  float largest = least;
  for (std::int64_t g = threadIdx.x; g < in.groups; g += threads) {
    least = fminf(least, scales[g]);
    largest = fmaxf(largest, scales[g]);
  }
  least = reduce<threads>(least, Minimum());
  largest = reduce<threads>(largest, Maximum());
  share = reduce<threads>(share, Plus());
  saturated = reduce<threads>(saturated, Plus());
  non_finite = reduce<threads>(non_finite, Plus());
  if (threadIdx.x == 0) {
    out.damping_share[r] = share;
    out.saturated[r] = saturated;
    out.non_finite[r] = non_finite;
    out.min_scale[r] = least;
    out.max_scale[r] = largest;
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const RowStatisticsArgs& args) {
  enqueue(stream, "row_statistics", [&](CudaStream& own) {
    if (args.delta.rows() == 0) {
      return;
    }
    const RowInputs in{.codes = args.codes.data,
                       .codes_stride = args.codes.stride,
                       .group = args.group.data,
                       .scales = args.scales.data,
                       .scales_stride = args.scales.stride,
                       .groups = args.scales.cols(),
                       .extra = args.extra ? args.extra->data : nullptr};
    const RowResults out{.damping_share = args.damping_share.data,
                         .saturated = args.saturated.data,
                         .non_finite = args.non_finite.data,
                         .min_scale = args.min_scale.data,
                         .max_scale = args.max_scale.data};
    const auto launch = [&]<class T>() {
      measure_rows<T><<<grid_size(args.delta.rows()), threads, 0, own.stream()>>>(
          (1 << args.bits) - 1, Rows<const T>(args.delta), args.delta.cols(), in, out);
    };
    if (args.delta.dtype == DType::f64) {
      launch.operator()<double>();
    } else {
      launch.operator()<float>();
    }
  });
}

}  // namespace gptqd::cuda
