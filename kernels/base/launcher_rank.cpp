#include "kernels/base/launcher_rank.hpp"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace gptqd {

int launcher_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    const char* text = std::getenv(name);
    if (text == nullptr) {
      continue;
    }
    int rank = 0;
    const char* end = text + std::strlen(text);
    const auto parsed = std::from_chars(text, end, rank);
    if (parsed.ec == std::errc() && parsed.ptr == end && rank >= 0) {
      return rank;
    }
  }
  return 0;
}

}  // namespace gptqd
