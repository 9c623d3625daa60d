#include "tests/kernels/device.hpp"

namespace gptqd::test {

std::vector<Device> available_devices() {
  return {{"cpu", [](int threads) { return make_cpu_backend({.threads = threads, .progress = nullptr}); }}};
}

}  // namespace gptqd::test
