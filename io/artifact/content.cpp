#include "io/artifact/content.hpp"

#include <fmt/format.h>

namespace gptqd::io {

std::string to_text(const LayerSettings& settings) {
  return fmt::format("{} bits, {}, {}{}", settings.bits,
                     settings.group_size == -1 ? "rows as groups" : fmt::format("groups of {}", settings.group_size),
                     settings.sym ? "symmetric" : "asymmetric", settings.reordered ? ", dynamic act-order" : "");
}

}  // namespace gptqd::io
