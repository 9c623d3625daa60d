#include "kernels/available_memory.hpp"

#include <fstream>
#include <string>

namespace gptqd {

std::int64_t available_host_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string name, rest; file >> name; std::getline(file, rest)) {
    std::int64_t kibibytes = 0;
    if (name == "MemAvailable:" && file >> kibibytes) {
      return kibibytes * 1024;
    }
  }
  throw Error(ErrorKind::io, "/proc/meminfo does not say how much memory is available; choose --activations yourself");
}

std::int64_t available_bytes(const Backend& backend) {
  return backend.memory_kind() == MemoryKind::host ? available_host_bytes() : available_cuda_bytes();
}

}  // namespace gptqd
