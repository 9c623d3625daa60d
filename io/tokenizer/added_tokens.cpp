#include "io/tokenizer/added_tokens.hpp"

#include <fmt/format.h>

#include "io/tokenizer/unicode_classes.hpp"
#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

namespace {

constexpr std::uint64_t root = 0;

std::uint64_t edge(std::uint64_t node, char byte) { return node << 8 | static_cast<unsigned char>(byte); }

/// Start of the last character of `text`. @pre not empty
std::size_t last_character(std::string_view text) {
  std::size_t position = text.size() - 1;
  while (position > 0 && (static_cast<unsigned char>(text[position]) & 0xc0u) == 0x80u) {
    --position;
  }
  return position;
}

/// Where the white space at the end of `text` begins.
std::size_t trailing_space(std::string_view text) {
  while (!text.empty()) {
    const auto last = last_character(text);
    if (!is_white_space(code_point_at(text, last))) {
      break;
    }
    text = text.substr(0, last);
  }
  return text.size();
}

/// Where the white space at the start of `text` ends.
std::size_t leading_space(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size() && is_white_space(code_point_at(text, position))) {
    position += utf8_step(text, position).length;
  }
  return position;
}

}  // namespace

void AddedTokens::Matcher::add(const AddedToken& token) {
  std::uint64_t node = root;
  starts_[static_cast<unsigned char>(token.content.front())] = true;
  for (const char byte : token.content) {
    node = edges_.try_emplace(edge(node, byte), edges_.size() + 1).first->second;
  }
  token_of_node_.emplace(node, tokens_.size());
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

void AddedTokens::Matcher::split(std::string_view text, const std::optional<SplitRegex>& word, const OnToken& on_token,
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
    if (token.lstrip && given < begin) {
      begin = given + trailing_space(text.substr(given, begin - given));
    }
    if (token.rstrip) {
      end += leading_space(text.substr(end));
    }
    if (given < begin) {
      rest(text.substr(given, begin - given));
    }
    on_token(token.id);
    given = end;
  }
  if (given < text.size()) {
    rest(text.substr(given));
  }
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) {
  for (const auto& token : tokens) {
    (token.normalized ? normalized_ : raw_).add(token);
    if (token.single_word && !word_) {
      word_.emplace(fmt::format("[{}]", unicode_words));
    }
  }
}

void AddedTokens::split(std::string_view text, const OnToken& token, const OnText& rest) const {
  raw_.split(text, word_, token, [&](std::string_view run) { normalized_.split(run, word_, token, rest); });
}

}  // namespace gptqd::io
