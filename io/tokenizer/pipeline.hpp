#pragma once
/// @file A tokenizer made of the parts of a tokenizer.json.
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/tokenizer.hpp"
#include "io/tokenizer/added_tokens.hpp"
#include "io/tokenizer/bpe.hpp"
#include "io/tokenizer/decoder.hpp"
#include "io/tokenizer/normalizer.hpp"
#include "io/tokenizer/pool.hpp"
#include "io/tokenizer/pre_tokenizer.hpp"
#include "io/tokenizer/template.hpp"

namespace gptqd::io {

/// Text -> added tokens -> normalizer -> more added tokens -> pre-tokenizers -> BPE -> template, and tokens -> decoder.
class PipelineTokenizer final : public Tokenizer {
 public:
  struct Parts {
    std::unique_ptr<Normalizer> normalizer;  ///< may be null
    std::vector<AddedToken> added;           ///< ids as in the vocabulary where the content is a token of it
    PreTokenizers pre_tokenizers;
    Bpe model;
    Template special;
    std::unique_ptr<Decoder> decoder;
  };

  /// @throws Error (input) for added tokens that AddedTokens refuses
  explicit PipelineTokenizer(Parts parts);

  std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const override;
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override;
  std::string token(std::int32_t id) const override;
  std::int64_t vocab_size() const override { return vocab_size_; }

 private:
  void encode_run(std::string_view run, bool comes_first, Bpe::Scratch& scratch, std::vector<std::int32_t>& ids) const;

  /// An added token as decode() gives it: normalized, as the reference does.
  struct DecodedToken {
    std::string text;
    bool special = false;  // whether a special token's content spells so
  };

  Parts parts_;
  AddedTokens added_;
  std::unordered_map<std::int32_t, DecodedToken> added_of_id_;
  std::int64_t vocab_size_ = 0;
  mutable Pool<Bpe::Scratch> scratches_;  // words are known from call to call
};

}  // namespace gptqd::io
