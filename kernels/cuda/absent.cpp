#include "kernels/backend.hpp"

namespace gptqd {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  throw Error(ErrorKind::not_built,
              fmt::format("CUDA device {}: this build has no CUDA backend; build with `cmake --preset cuda && cmake "
                          "--build --preset cuda`, or run with --device cpu",
                          options.device));
}

int cuda_device_count() { return 0; }

}  // namespace gptqd
