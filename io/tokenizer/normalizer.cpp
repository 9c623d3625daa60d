#include "io/tokenizer/normalizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "io/json_file.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/regex.hpp"
#include "io/tokenizer/unicode_normalizer.hpp"
#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void normalize(std::string& text) const override {
    if (!text.empty()) {
      text.insert(0, prefix_);
    }
  }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void normalize(std::string& text) const override { text = pattern_.replaced(text, content_); }

 private:
  Regex pattern_;
  std::string content_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void normalize(std::string& text) const override {
    if (right_) {
      text.resize(trailing_space(text));
    }
    if (left_) {
      text.erase(0, leading_space(text));
    }
  }
  bool may_move_start() const override { return left_; }

 private:
  bool left_;
  bool right_;
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void normalize(std::string& text) const override {
    for (const auto& step : steps_) {
      step->normalize(text);
    }
  }
  bool may_move_start() const override {
    return std::any_of(steps_.begin(), steps_.end(), [](const auto& step) { return step->may_move_start(); });
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<Normalizer> read_normalizer(const json& part, std::string_view where) {
  constexpr std::string_view name = "normalizer";
  const auto type = type_of(part, name, where);
  const auto place = fmt::format("{}: {}", where, name);
  if (type == "null") {
    return nullptr;
  }
  if (const auto form = normal_form(type)) {
    check_members(part, {"type"}, name, where);
    return std::make_unique<UnicodeNormalizer>(*form);
  }
  if (type == "Prepend") {
    check_members(part, {"type", "prepend"}, name, where);
    return std::make_unique<Prepend>(get<std::string>(part, "prepend", place));
  }
  if (type == "Replace") {
    check_members(part, {"type", "pattern", "content"}, name, where);
    auto pattern = get_pattern(part, place);
    if (pattern.may_match_empty()) {
      fail_unsupported(place, "a pattern that may match nothing at all", "patterns that match a character");
    }
    return std::make_unique<Replace>(std::move(pattern), get<std::string>(part, "content", place));
  }
  if (type == "Strip") {
    check_members(part, {"type", "strip_left", "strip_right"}, name, where);
    return std::make_unique<Strip>(get<bool>(part, "strip_left", place), get<bool>(part, "strip_right", place));
  }
  if (type == "Sequence") {
    check_members(part, {"type", "normalizers"}, name, where);
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const auto& step : get<std::vector<json>>(part, "normalizers", place)) {
      if (auto read = read_normalizer(step, where)) {
        steps.push_back(std::move(read));
      }
    }
    return std::make_unique<NormalizerSequence>(std::move(steps));
  }
  fail_unsupported(where, fmt::format("normalizer of type {}", type),
                   "null, NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, Sequence");
}

}  // namespace gptqd::io
