#include "io/tokenizer/split.hpp"

#include <algorithm>
#include <vector>

namespace gptqd::io {

namespace {

struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool is_match = false;
};

/// Matches and what lies between them, in order; an empty match is one of them.
std::vector<Span> spans_of(std::string_view text, const Regex& pattern, bool invert) {
  std::vector<Span> spans;
  std::size_t done = 0;
  pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    if (done != begin) {
      spans.push_back({done, begin, invert});
    }
    spans.push_back({begin, end, !invert});
    done = end;
  });
  if (done != text.size()) {
    spans.push_back({done, text.size(), invert});
  }
  return spans;
}

/// Joins neighbours: each span to the one before it where `joins(is_match of the one before, is_match)` says so.
template <class Joins>
std::vector<Span> joined(const std::vector<Span>& spans, Joins&& joins) {
  std::vector<Span> result;
  bool previous = false;
  for (const auto& span : spans) {
    if (joins(previous, span.is_match) && !result.empty()) {
      auto& last = result.back();
      last = {std::min(last.begin, span.begin), std::max(last.end, span.end), false};
    } else {
      result.push_back({span.begin, span.end, false});
    }
    previous = span.is_match;
  }
  return result;
}

}  // namespace

std::optional<SplitBehavior> split_behavior(std::string_view name) {
  if (name == "Removed") {
    return SplitBehavior::removed;
  }
  if (name == "Isolated") {
    return SplitBehavior::isolated;
  }
  if (name == "MergedWithPrevious") {
    return SplitBehavior::merged_with_previous;
  }
  if (name == "MergedWithNext") {
    return SplitBehavior::merged_with_next;
  }
  if (name == "Contiguous") {
    return SplitBehavior::contiguous;
  }
  return std::nullopt;
}

void split(std::string_view text, const Regex& pattern, SplitBehavior behavior, bool invert, const OnPiece& piece) {
  if (behavior == SplitBehavior::isolated) {  // the common one: pieces come as they are found
    std::size_t done = 0;
    const auto give = [&](std::size_t end) {
      if (done < end) {
        piece(text.substr(done, end - done));
        done = end;
      }
    };
    pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
      give(begin);
      give(end);
    });
    give(text.size());
    return;
  }
  auto spans = spans_of(text, pattern, invert);
  const auto match_after_none = [](bool previous, bool is_match) { return is_match && !previous; };
  switch (behavior) {
    case SplitBehavior::removed:
    case SplitBehavior::isolated:
      break;
    case SplitBehavior::merged_with_previous:
      spans = joined(spans, match_after_none);
      break;
    case SplitBehavior::merged_with_next:
      std::reverse(spans.begin(), spans.end());
      spans = joined(spans, match_after_none);
      std::reverse(spans.begin(), spans.end());
      break;
    case SplitBehavior::contiguous:
      spans = joined(spans, [](bool previous, bool is_match) { return is_match == previous; });
      break;
  }
  for (const auto& span : spans) {
    if (span.begin < span.end && !span.is_match) {  // where matches stay, joined() has made them plain spans
      piece(text.substr(span.begin, span.end - span.begin));
    }
  }
}

}  // namespace gptqd::io
