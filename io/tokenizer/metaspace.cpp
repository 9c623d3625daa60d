#include "io/tokenizer/metaspace.hpp"

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

Metaspace read_metaspace(const nlohmann::json& part, std::string_view name, std::string_view where) {
  check_members(part, {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}, name, where);
  const auto place = fmt::format("{}: {}", where, name);
  Metaspace result;
  append_utf8(result.replacement, get_character(part, "replacement", place));
  result.split = get_or<bool>(part, "split", true, place);
  const auto scheme = get_or<std::string>(part, "prepend_scheme", "always", place);
  if (scheme == "always") {
    result.prepend = Metaspace::Prepend::always;
  } else if (scheme == "first") {
    result.prepend = Metaspace::Prepend::first;
  } else if (scheme == "never") {
    result.prepend = Metaspace::Prepend::never;
  } else {
    fail_unsupported(place, fmt::format("prepend_scheme \"{}\"", scheme), "always, first, never");
  }
  // Files of before 2024 say add_prefix_space alone; where both are there they must agree.
  if (!get_or<bool>(part, "add_prefix_space", true, place) && result.prepend != Metaspace::Prepend::never) {
    fail(place, fmt::format("add_prefix_space is false, but prepend_scheme is \"{}\", expected \"never\"", scheme));
  }
  return result;
}

}  // namespace gptqd::io
