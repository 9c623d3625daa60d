#include "io/tokenizer/added_tokens.hpp"

#include "io/tokenizer/unicode_tables.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::uint64_t root = 0;
constexpr std::size_t longest_content = 1024;  // a search may look so far ahead at every byte

std::uint64_t edge(std::uint64_t node, char byte) { return node << 8 | static_cast<unsigned char>(byte); }

}  // namespace

void AddedTokens::Matcher::add(const AddedToken& token) {
  if (token.content.size() > longest_content) {
    throw Error(ErrorKind::input, fmt::format("the added token with the id {} has {} bytes, expected at most {}",
                                              token.id, token.content.size(), longest_content));
  }
  if (token.content.empty()) {
    throw Error(ErrorKind::input, fmt::format("the normalizer leaves nothing of the added token with the id {}; set "
                                              "its \"normalized\" to false",
                                              token.id));
  }
  std::uint64_t node = root;
  starts_[static_cast<unsigned char>(token.content.front())] = true;
  for (const char byte : token.content) {
    node = edges_.try_emplace(edge(node, byte), edges_.size() + 1).first->second;
  }
  if (!token_of_node_.emplace(node, tokens_.size()).second) {
    throw Error(ErrorKind::input,
                fmt::format("the added tokens with the ids {} and {} are the same after normalization",
                            tokens_[token_of_node_.at(node)].id, token.id));
  }
  tokens_.push_back(token);
}

std::optional<AddedTokens::Matcher::Match> AddedTokens::Matcher::match_at(std::string_view text,
                                                                          std::size_t position) const {
  std::optional<Match> longest;
  std::uint64_t node = root;
  for (std::size_t i = position; i < text.size(); ++i) {
    const auto next = edges_.find(edge(node, text[i]));
    if (next == edges_.end()) {
      break;
    }
    node = next->second;
    if (const auto token = token_of_node_.find(node); token != token_of_node_.end()) {
      longest = Match{i + 1 - position, token->second};
    }
  }
  return longest;
}

void AddedTokens::Matcher::split(std::string_view text, const std::optional<Regex>& word, const OnToken& on_token,
                                 const OnText& rest) const {
  std::size_t given = 0;
  std::size_t position = tokens_.empty() ? text.size() : 0;
  while (position < text.size()) {
    const bool candidate = starts_[static_cast<unsigned char>(text[position])];
    const auto match = candidate ? match_at(text, position) : std::nullopt;
    if (!match) {
      ++position;
      continue;
    }
    const AddedToken& token = tokens_[match->token];
    std::size_t begin = position;
    std::size_t end = position + match->length;
    // Matches never overlap, and a match that is discarded still takes its text away from those after it.
    position = end;
    if (token.single_word) {
      const auto before = text.substr(0, begin);
      const auto after = text.substr(end);
      if ((!before.empty() && word->matches(before.substr(last_character(before)))) ||
          (!after.empty() && word->matches(after.substr(0, utf8_step(after, 0).length)))) {
        continue;
      }
    }
    if (token.lstrip) {
      begin = given < begin ? given + trailing_space(text.substr(given, begin - given)) : given;
    }
    if (token.rstrip) {
      end += leading_space(text.substr(end));
    }
    if (given < begin) {
      rest(text.substr(given, begin - given));
    }
    // White space that the token before has taken may hold a token of white space; the reference drops it if nothing is
    // left of it, and else goes on behind it.
    if (begin < end) {
      on_token(token.id);
    }
    given = end;
  }
  if (given < text.size()) {
    rest(text.substr(given));
  }
}

std::string normalized_content(const AddedToken& token, const Normalizer* normalizer) {
  auto content = token.content;
  if (token.normalized && normalizer != nullptr) {
    normalizer->normalize(content);
  }
  return content;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, const Normalizer* normalizer) {
  for (auto token : tokens) {
    token.content = normalized_content(token, normalizer);
    (token.normalized ? normalized_ : raw_).add(token);
    if (token.single_word && !word_) {
      word_.emplace(fmt::format("[{}]", rust_word_members()));
    }
  }
}

void AddedTokens::split_raw(std::string_view text, const OnToken& token, const OnText& rest) const {
  raw_.split(text, word_, token, rest);
}

void AddedTokens::split_normalized(std::string_view text, const OnToken& token, const OnText& rest) const {
  normalized_.split(text, word_, token, rest);
}

}  // namespace gptqd::io
