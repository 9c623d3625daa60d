#pragma once
/// @file From tokens back to text: tokenizer.json's "decoder".
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Changes a list of tokens towards text. Immutable: may be used from several threads at once.
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// @pre every token is valid UTF-8, and so they are afterwards
  virtual void decode(std::vector<std::string>& tokens) const = 0;
};

/// Reads ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip and Sequence; null puts blanks between tokens.
/// @param where  the file's name, for messages
/// @throws Error (input) naming what is wrong or not supported
std::unique_ptr<Decoder> read_decoder(const nlohmann::json& part, std::string_view where);

}  // namespace gptqd::io
