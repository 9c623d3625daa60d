#pragma once
/// @file CUDA's and its libraries' results as errors.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include <string_view>

#include "kernels/base/error.hpp"

namespace gptqd::cuda {

/// @throws Error (internal) "CUDA device 0 (<bus>) of <host>, <doing>: <name>: <text>" unless `status` is success; one
/// of lost_device() when every later call would fail too
void check(cudaError_t status, std::string_view doing, SourceLocation location = SourceLocation::current());
void check(cublasStatus_t status, std::string_view doing, SourceLocation location = SourceLocation::current());
void check(cusolverStatus_t status, std::string_view doing, SourceLocation location = SourceLocation::current());

}  // namespace gptqd::cuda
