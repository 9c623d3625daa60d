#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

namespace {

constexpr int search_threads = 1024;

/// One block: the first value outside [low, high).
__global__ void __launch_bounds__(search_threads) find_outside(const std::int32_t* values, std::int64_t count,
                                                               std::int64_t low, std::int64_t high, Finding* finding) {
  std::int64_t first = count;
  for (std::int64_t i = threadIdx.x; i < count && first == count; i += search_threads) {
    if (values[i] < low || values[i] >= high) {
      first = i;
    }
  }
  first = reduce<search_threads>(first, Minimum{});
  if (threadIdx.x == 0 && first < count) {
    finding->value = values[first];
    finding->position = first;
  }
}

}  // namespace

void expect_inside(CudaStream& stream, ConstTensorView<std::int32_t, 1> values, std::int64_t low, std::int64_t high,
                   std::function<std::string(const Finding&)> describe) {
  if (values.rows() == 0) {
    return;
  }
  Finding* const finding = stream.expect_no_finding(std::move(describe));
  find_outside<<<1, search_threads, 0, stream.stream()>>>(values.data, values.rows(), low, high, finding);
}

}  // namespace gptqd::cuda
