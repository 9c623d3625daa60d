#pragma once
/// @file Tokens and their ids.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace gptqd::io {

/// Lets maps with string keys be searched by string_view.
struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

/// Tokens as tokenizer.json spells them, and their ids: one to one.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) noexcept = default;
  Vocabulary& operator=(Vocabulary&&) noexcept = default;

  /// @throws Error (input) if the id is negative, or the token or id is there already
  void add(std::string token, std::int32_t id);

  std::optional<std::int32_t> find(std::string_view token) const;
  /// Null for an id without a token.
  const std::string* token(std::int32_t id) const;
  std::int64_t size() const { return static_cast<std::int64_t>(ids_.size()); }
  /// The largest id plus one.
  std::int64_t id_bound() const { return id_bound_; }
  const std::unordered_map<std::int32_t, const std::string*>& tokens() const { return tokens_; }

 private:
  std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>> ids_;
  std::unordered_map<std::int32_t, const std::string*> tokens_;  // into ids_, whose keys never move
  std::int64_t id_bound_ = 0;
};

}  // namespace gptqd::io
