#include "kernels/cuda/cuda_error.hpp"

namespace gptqd::cuda {

void check(cudaError_t status, std::string_view doing, SourceLocation location) {
  if (status != cudaSuccess) {
    throw Error(ErrorKind::internal,
                fmt::format("CUDA, {}: {}: {}", doing, cudaGetErrorName(status), cudaGetErrorString(status)), location);
  }
}

void check(cublasStatus_t status, std::string_view doing, SourceLocation location) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw Error(ErrorKind::internal, fmt::format("cuBLAS, {}: {}", doing, cublasGetStatusName(status)), location);
  }
}

void check(cusolverStatus_t status, std::string_view doing, SourceLocation location) {
  if (status != CUSOLVER_STATUS_SUCCESS) {
    throw Error(ErrorKind::internal, fmt::format("cuSOLVER, {}: status {}", doing, static_cast<int>(status)), location);
  }
}

}  // namespace gptqd::cuda
