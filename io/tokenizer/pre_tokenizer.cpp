#include "io/tokenizer/pre_tokenizer.hpp"

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/metaspace.hpp"
#include "io/tokenizer/oniguruma.hpp"
#include "io/tokenizer/split.hpp"
#include "io/tokenizer/unicode_tables.hpp"
#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

constexpr std::string_view pre_tokenizer_part = "pre_tokenizer";

/// GPT-2's, which ByteLevel has built in.
constexpr std::string_view gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Splitter final : public PreTokenizer {
 public:
  Splitter(Regex pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(const Piece& piece, const OnPiece& next) const override {
    split(piece.text, pattern_, behavior_, invert_, [&](std::string_view text) {
      next({text, piece.comes_first && text.data() == piece.text.data()});
    });
  }

 private:
  Regex pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

/// ByteLevel as far as it is not the model's alphabet.
class ByteLevelWords final : public PreTokenizer {
 public:
  ByteLevelWords(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) {
      words_.emplace(pcre2_from_oniguruma(gpt2_words), std::string(gpt2_words));
    }
  }

  void apply(const Piece& piece, const OnPiece& next) const override {
    std::string_view text = piece.text;
    std::string prefixed;
    if (add_prefix_space_ && !text.starts_with(' ')) {
      prefixed.reserve(text.size() + 1);
      text = prefixed.append(1, ' ').append(text);
    }
    if (words_) {
      split(text, *words_, SplitBehavior::isolated, false, [&](std::string_view word) {
        next({word, piece.comes_first && word.data() == text.data()});
      });
    } else {
      next({text, piece.comes_first});
    }
  }

 private:
  bool add_prefix_space_;
  std::optional<Regex> words_;
};

class MetaspaceWords final : public PreTokenizer {
 public:
  explicit MetaspaceWords(Metaspace settings) : settings_(std::move(settings)) {}

  void apply(const Piece& piece, const OnPiece& next) const override {
    const std::string& mark = settings_.replacement;
    auto text = replaced(piece.text, " ", mark);
    const bool prepends = settings_.prepend == Metaspace::Prepend::always ||
                          (settings_.prepend == Metaspace::Prepend::first && piece.comes_first);
    if (prepends && !text.starts_with(mark)) {
      text.insert(0, mark);
    }
    const std::string_view whole = text;
    for (std::size_t begin = 0; begin < whole.size();) {
      const auto end = settings_.split ? std::min(whole.find(mark, begin + 1), whole.size()) : whole.size();
      next({whole.substr(begin, end - begin), piece.comes_first && begin == 0});
      begin = end;
    }
  }

 private:
  Metaspace settings_;
};

void read_step(const json& part, std::string_view where, PreTokenizers& result) {
  const auto type = type_of(part, pre_tokenizer_part, where);
  const auto place = fmt::format("{}: {}", where, pre_tokenizer_part);
  if (type == "null") {
    return;
  }
  if (result.byte_level && type != "Sequence") {
    fail_unsupported(where, fmt::format("pre_tokenizer of type {} behind ByteLevel", type), "ByteLevel at the end");
  }
  if (type == "ByteLevel") {
    check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, pre_tokenizer_part, where);
    // Files of before 2022 do not say use_regex.
    result.steps.push_back(std::make_unique<ByteLevelWords>(get<bool>(part, "add_prefix_space", place),
                                                            get_or<bool>(part, "use_regex", true, place)));
    result.byte_level = true;
  } else if (type == "Digits") {
    check_members(part, {"type", "individual_digits"}, pre_tokenizer_part, where);
    const bool individual = get<bool>(part, "individual_digits", place);
    result.steps.push_back(
        std::make_unique<Splitter>(Regex(fmt::format("[{}]{}", numeric_members(), individual ? "" : "+"), "Digits"),
                                   SplitBehavior::isolated, false));
  } else if (type == "Split") {
    check_members(part, {"type", "pattern", "behavior", "invert"}, pre_tokenizer_part, where);
    const auto name = get<std::string>(part, "behavior", place);
    const auto behavior = split_behavior(name);
    if (!behavior) {
      fail_unsupported(place, fmt::format("behavior \"{}\"", name),
                       "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
    }
    result.steps.push_back(
        std::make_unique<Splitter>(get_pattern(part, place), *behavior, get<bool>(part, "invert", place)));
  } else if (type == "Metaspace") {
    auto settings = read_metaspace(part, pre_tokenizer_part, where);
    if (settings.prepend == Metaspace::Prepend::first) {
      result.asks_who_comes_first = true;
      result.cuts_before_asking = result.cuts_before_asking || !result.steps.empty();
    }
    result.steps.push_back(std::make_unique<MetaspaceWords>(std::move(settings)));
  } else if (type == "Sequence") {
    check_members(part, {"type", "pretokenizers"}, pre_tokenizer_part, where);
    for (const auto& step : get<std::vector<json>>(part, "pretokenizers", place)) {
      read_step(step, where, result);
    }
  } else {
    fail_unsupported(where, fmt::format("pre_tokenizer of type {}", type),
                     "null, ByteLevel, Digits, Metaspace, Split, Sequence");
  }
}

void apply_from(const std::vector<std::unique_ptr<PreTokenizer>>& steps, std::size_t first, const Piece& piece,
                const PreTokenizer::OnPiece& word) {
  if (first == steps.size()) {
    word(piece);
  } else if (first + 1 == steps.size()) {
    steps[first]->apply(piece, word);
  } else {
    steps[first]->apply(piece, [&](const Piece& part) { apply_from(steps, first + 1, part, word); });
  }
}

}  // namespace

void PreTokenizers::apply(const Piece& piece, const PreTokenizer::OnPiece& word) const {
  apply_from(steps, 0, piece, word);
}

PreTokenizers read_pre_tokenizers(const json& part, std::string_view where) {
  PreTokenizers result;
  read_step(part, where, result);
  return result;
}

}  // namespace gptqd::io
