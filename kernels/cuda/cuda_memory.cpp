#include "kernels/available_memory.hpp"
#include "kernels/cuda/cuda_error.hpp"

namespace gptqd {

std::int64_t available_cuda_bytes() {
  std::size_t available = 0;
  std::size_t total = 0;
  cuda::check(cudaMemGetInfo(&available, &total), "asking how much memory a GPU has left");
  return static_cast<std::int64_t>(available);
}

}  // namespace gptqd
