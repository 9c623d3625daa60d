#pragma once
/// @file How a text is cut into words before the model: tokenizer.json's "pre_tokenizer".
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// A piece of a text on its way to the model.
struct Piece {
  std::string_view text;
  bool comes_first = false;  ///< it begins where the whole text begins
};

/// Cuts pieces, and may change them. Immutable: may be used from several threads at once.
class PreTokenizer {
 public:
  using OnPiece = std::function<void(const Piece& piece)>;

  virtual ~PreTokenizer() = default;
  /// Calls `next` for each piece of `piece`, in order, none of them empty; their texts live during the call.
  virtual void apply(const Piece& piece, const OnPiece& next) const = 0;
};

/// The steps of a pre_tokenizer; none for null.
struct PreTokenizers {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  bool byte_level = false;            ///< ends in ByteLevel: the model spells bytes
  bool asks_who_comes_first = false;  ///< a Metaspace with the prepend_scheme "first"
  bool cuts_before_asking = false;    ///< another step stands before that Metaspace

  /// All steps, one after the other.
  void apply(const Piece& piece, const PreTokenizer::OnPiece& word) const;
};

/// Reads ByteLevel, Digits, Metaspace, Split and Sequence; ByteLevel must come last.
/// @param where  the file's name, for messages
/// @throws Error (input) naming what is wrong or not supported
PreTokenizers read_pre_tokenizers(const nlohmann::json& part, std::string_view where);

}  // namespace gptqd::io
