#pragma once
/// @file Text to token ids and back, as Hugging Face tokenizers does it.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Whether encode() adds the tokens of the tokenizer's template (OPT's leading </s>, Llama's leading <s>).
enum class SpecialTokens { none, add };

/// A model's tokenizer. Immutable once opened: every method may be called from several threads at once.
///
/// The ids equal those of Hugging Face tokenizers for every text, or opening fails: whatever a tokenizer.json asks for
/// and this program does not do is refused by name. Two of its settings are not part of the mapping and have no
/// effect, as in transformers: `truncation` and `padding` (texts are always encoded whole).
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Reads the tokenizer of the model in `folder`: tokenizer.json; or vocab.json with merges.txt (GPT-2, OPT); or
  /// tokenizer.model (SentencePiece; Llama 2, Mistral). The first of them that is there counts.
  /// @throws Error (input) if there is none, it is damaged or inconsistent, or it uses what is not supported; (io)
  static std::unique_ptr<Tokenizer> open(const std::filesystem::path& folder);

  /// Token ids of `text`.
  ///
  /// Added tokens that stand in the text ("</s>") become their ids with either value of `special`. Bytes that are not
  /// UTF-8 are read as U+FFFD, one for each maximal subpart (Unicode 3.9; what Python's errors="replace" does): the ids
  /// are those of the text as Hugging Face would get to see it. U+0000 and line ends of any kind are kept as they are.
  /// @throws Error (input) for 2 GiB of text and more, for a character that the vocabulary has no token for, and for a
  ///         text that a regular expression gives up on or that is one word beyond bounds (docs/tokenizers.md)
  virtual std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const = 0;

  /// The text of `ids`, valid UTF-8: characters that are cut become U+FFFD. An id that has no token gives nothing
  /// (models pad their vocabulary).
  /// @param skip_special  leaves out the tokens that tokenizer.json marks as special
  virtual std::string decode(std::span<const std::int32_t> ids, bool skip_special) const = 0;

  /// The token of an id as the vocabulary spells it ("Ġthe", "▁the", "</s>"), empty for an id without one; from a
  /// tokenizer that spells nothing, its text.
  virtual std::string token(std::int32_t id) const;

  /// The largest id plus one, added tokens included.
  virtual std::int64_t vocab_size() const = 0;
};

}  // namespace gptqd::io
