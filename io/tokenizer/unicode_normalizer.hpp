#pragma once
/// @file Unicode normalization forms (UAX 15) by utf8proc, as of the Unicode that Hugging Face tokenizers knows.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/normalizer.hpp"

namespace gptqd::io {

struct NormalForm {
  bool compose = false;        ///< NFC, NFKC
  bool compatibility = false;  ///< NFKC, NFKD
};
/// The form called "NFC", "NFD", "NFKC" or "NFKD"; nullopt for another name.
std::optional<NormalForm> normal_form(std::string_view name);

class UnicodeNormalizer final : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  /// n characters take O(n log n), whatever they are. Characters that the reference's tables do not have stay as they
  /// are, and neither move nor compose.
  void normalize(std::string& text) const override;
  bool may_move_start() const override { return false; }

 private:
  void append_normalized(std::string_view part, std::string& result, std::vector<std::int32_t>& characters) const;

  NormalForm form_;
};

}  // namespace gptqd::io
