#include "tests/kernels/device.hpp"

#include <cstdlib>

namespace gptqd::test {

namespace {

Device cpu() {
  return {.name = "cpu", .compute = DType::f32, .make = [](int threads) {
            return make_cpu_backend({.threads = threads, .progress = nullptr});
          }};
}

Device cuda(std::string name, DType compute) {
  return {.name = std::move(name), .compute = compute, .make = [](int) {
            return make_cuda_backend({.device = 0, .progress = nullptr});
          }};
}

bool has_gpu() {
  const bool found = cuda_device_count() > 0;
  require(found || std::getenv("GPTQD_REQUIRE_GPU") == nullptr,
          "GPTQD_REQUIRE_GPU is set, but this build or this machine has no GPU");
  return found;
}

}  // namespace

std::vector<Device> available_devices() {
  std::vector<Device> devices{cpu()};
  if (has_gpu()) {
    devices.push_back(cuda("cuda", DType::f32));
  }
  return devices;
}

std::vector<Device> compute_devices() {
  std::vector<Device> devices{cpu()};
  if (has_gpu()) {
    devices.push_back(cuda("cuda_f32", DType::f32));
    devices.push_back(cuda("cuda_f16", DType::f16));
    devices.push_back(cuda("cuda_bf16", DType::bf16));
  }
  return devices;
}

}  // namespace gptqd::test
