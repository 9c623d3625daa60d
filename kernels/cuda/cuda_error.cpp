#include "kernels/cuda/cuda_error.hpp"

#include <limits.h>
#include <unistd.h>

#include <string>

namespace gptqd::cuda {

namespace {

/// The calling thread's, as the system's log of its node names it. Asks nothing of its context.
std::string name_of_device() {
  int device = 0;
  char bus[32] = "";
  char host[HOST_NAME_MAX + 1] = "";
  ::gethostname(host, sizeof(host) - 1);
  const bool known = cudaGetDevice(&device) == cudaSuccess;
  if (known && cudaDeviceGetPCIBusId(bus, sizeof(bus), device) == cudaSuccess) {
    return fmt::format("CUDA device {} ({}) of {}", device, bus, host);
  }
  return known ? fmt::format("CUDA device {} of {}", device, host) : fmt::format("a CUDA device of {}", host);
}

std::string describe(cudaError_t status) {
  return fmt::format("{}: {}", cudaGetErrorName(status), cudaGetErrorString(status));
}

/// CUDA's documentation says of these that the process has to be started again.
bool ends_the_context(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDeviceUninitialized:
      return true;
    default:
      return false;
  }
}

/// `what` failed with `cause`; where the device will go on failing, its own error says so.
[[noreturn]] void fail(std::string_view what, const std::string& cause, cudaError_t status,
                       const SourceLocation& location) {
  const auto device = name_of_device();
  cudaGetLastError();  // forgets an error that does not stick
  const cudaError_t now = cudaStreamQuery(cudaStreamLegacy);
  const bool sticks = now != cudaSuccess && now != cudaErrorNotReady;
  if (sticks || ends_the_context(status)) {
    const auto own = sticks && now != status ? fmt::format(" ({})", describe(now)) : std::string();
    throw lost_device(device, fmt::format("{}: {}{}", what, cause, own), location);
  }
  throw Error(ErrorKind::internal, fmt::format("{}, {}: {}", device, what, cause), location);
}

}  // namespace

void check(cudaError_t status, std::string_view doing, SourceLocation location) {
  if (status != cudaSuccess) {
    fail(doing, describe(status), status, location);
  }
}

void check(cublasStatus_t status, std::string_view doing, SourceLocation location) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(doing, fmt::format("cuBLAS: {}", cublasGetStatusName(status)), cudaSuccess, location);
  }
}

void check(cusolverStatus_t status, std::string_view doing, SourceLocation location) {
  if (status != CUSOLVER_STATUS_SUCCESS) {
    fail(doing, fmt::format("cuSOLVER: status {}", static_cast<int>(status)), cudaSuccess, location);
  }
}

}  // namespace gptqd::cuda
