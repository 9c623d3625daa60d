#include "io/pytorch/quoted_text.hpp"

#include <nlohmann/json.hpp>

namespace gptqd::io {

std::string quoted_text(std::string_view text) {
  constexpr std::size_t longest = 200;
  return nlohmann::json(std::string(text.substr(0, longest)))
      .dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
}

}  // namespace gptqd::io
