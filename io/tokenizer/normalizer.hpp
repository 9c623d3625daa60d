#pragma once
/// @file What is done to a text before it is cut: tokenizer.json's "normalizer".
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace gptqd::io {

/// Changes a run of text. Immutable: may be used from several threads at once.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// @pre valid UTF-8, which `text` still is afterwards
  virtual void normalize(std::string& text) const = 0;
  /// Whether the first character of the result may come from elsewhere than the first of the text.
  virtual bool may_move_start() const { return true; }
};

/// Reads NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip and Sequence; null gives null.
/// @param where  the file's name, for messages
/// @throws Error (input) naming what is wrong or not supported
std::unique_ptr<Normalizer> read_normalizer(const nlohmann::json& part, std::string_view where);

}  // namespace gptqd::io
