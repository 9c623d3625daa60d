#include "io/tokenizer/pipeline.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

PipelineTokenizer::PipelineTokenizer(Parts parts)
    : parts_(std::move(parts)),
      added_(parts_.added, parts_.normalizer.get()),
      vocab_size_(parts_.model.vocabulary().id_bound()) {
  std::set<std::string> special;
  for (const auto& token : parts_.added) {
    if (token.special) {
      special.insert(token.content);
    }
  }
  for (const auto& token : parts_.added) {
    auto text = normalized_content(token, parts_.normalizer.get());
    const bool is_special = special.count(text) != 0;
    added_of_id_.emplace(token.id, DecodedToken{std::move(text), is_special});
    vocab_size_ = std::max(vocab_size_, std::int64_t{token.id} + 1);
  }
}

std::vector<std::int32_t> PipelineTokenizer::encode(std::string_view text, SpecialTokens special) const {
  const auto repaired = repaired_text(text);
  if (repaired) {
    text = *repaired;
  }
  std::vector<std::int32_t> ids;
  if (special == SpecialTokens::add) {
    ids = parts_.special.before;
  }
  auto scratch = scratches_.take();
  const auto push = [&](std::int32_t id) { ids.push_back(id); };
  added_.split_raw(text, push, [&](std::string_view raw) {
    const bool comes_first = raw.data() == text.data();
    if (parts_.normalizer == nullptr) {
      added_.split_normalized(raw, push, [&](std::string_view run) {
        encode_run(run, comes_first && run.data() == raw.data(), *scratch, ids);
      });
      return;
    }
    std::string normalized(raw);
    parts_.normalizer->normalize(normalized);
    added_.split_normalized(normalized, push, [&](std::string_view run) {
      encode_run(run, comes_first && run.data() == normalized.data(), *scratch, ids);
    });
  });
  scratch->shrink();
  scratches_.give_back(std::move(scratch));
  if (special == SpecialTokens::add) {
    ids.insert(ids.end(), parts_.special.after.begin(), parts_.special.after.end());
  }
  return ids;
}

void PipelineTokenizer::encode_run(std::string_view run, bool comes_first, Bpe::Scratch& scratch,
                                   std::vector<std::int32_t>& ids) const {
  parts_.pre_tokenizers.apply({run, comes_first},
                              [&](const Piece& word) { parts_.model.encode(word.text, scratch, ids); });
}

std::string PipelineTokenizer::token(std::int32_t id) const {
  if (const auto added = added_of_id_.find(id); added != added_of_id_.end()) {
    return added->second.text;
  }
  const auto* token = parts_.model.vocabulary().token(id);
  return token == nullptr ? "" : *token;
}

std::string PipelineTokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const auto id : ids) {
    if (const auto added = added_of_id_.find(id); added != added_of_id_.end()) {
      if (!(skip_special && added->second.special)) {
        tokens.push_back(added->second.text);
      }
    } else if (const auto* token = parts_.model.vocabulary().token(id)) {
      tokens.push_back(*token);
    }
  }
  parts_.decoder->decode(tokens);
  std::string text;
  for (const auto& token : tokens) {
    text += token;
  }
  return text;
}

}  // namespace gptqd::io
