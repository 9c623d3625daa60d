#include "kernels/available_memory.hpp"
#include "kernels/backend.hpp"

namespace gptqd {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  throw Error(ErrorKind::not_built,
              fmt::format("CUDA device {}: this build has no CUDA backend; build with `cmake --preset cuda && cmake "
                          "--build --preset cuda`, or run with --device cpu",
                          options.device));
}

int cuda_device_count() { return 0; }

std::int64_t available_cuda_bytes() {
  throw Error(ErrorKind::not_built, "memory of a GPU: this build has no CUDA backend; build with --preset cuda");
}

}  // namespace gptqd
