#include "io/tokenizer/vocabulary.hpp"

#include <algorithm>
#include <utility>

#include "kernels/base/error.hpp"

namespace gptqd::io {

void Vocabulary::add(std::string token, std::int32_t id) {
  if (id < 0) {
    throw Error(ErrorKind::input, fmt::format("token \"{}\" has the id {}; ids start at 0", token, id));
  }
  if (const auto other = tokens_.find(id); other != tokens_.end()) {
    throw Error(ErrorKind::input,
                fmt::format("tokens \"{}\" and \"{}\" both have the id {}", *other->second, token, id));
  }
  const auto [entry, is_new] = ids_.try_emplace(std::move(token), id);
  if (!is_new) {
    throw Error(ErrorKind::input, fmt::format("token \"{}\" has two ids, {} and {}", entry->first, entry->second, id));
  }
  tokens_.emplace(id, &entry->first);
  id_bound_ = std::max(id_bound_, std::int64_t{id} + 1);
}

std::optional<std::int32_t> Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const std::string* Vocabulary::token(std::int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : found->second;
}

}  // namespace gptqd::io
