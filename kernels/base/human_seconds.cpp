#include "kernels/base/human_seconds.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>

namespace gptqd {

std::string human_seconds(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole >= 3600) {
    return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
  }
  return whole >= 60 ? fmt::format("{} min {:02} s", whole / 60, whole % 60) : fmt::format("{:.1f} s", seconds);
}

}  // namespace gptqd
