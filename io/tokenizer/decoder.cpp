#include "io/tokenizer/decoder.hpp"

#include <fmt/ranges.h>

#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

#include "io/json_file.hpp"
#include "io/tokenizer/byte_alphabet.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/metaspace.hpp"
#include "io/tokenizer/regex.hpp"
#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

namespace {

using nlohmann::json;

constexpr std::string_view decoder_part = "decoder";

class Blanks final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      tokens[i].insert(0, 1, ' ');
    }
  }
};

class Fuse final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override { tokens = {fmt::to_string(fmt::join(tokens, ""))}; }
};

class ByteLevelText final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    std::string bytes;
    for (const auto& token : tokens) {
      // A token with a character outside the alphabet stands for itself.
      bytes += byte_level_bytes(token).value_or(token);
    }
    tokens = {replace_invalid_utf8(bytes)};
  }
};

class ByteFallback final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens) const override {
    std::vector<std::string> result;
    std::string bytes;  // of the tokens <0x..> that have come one after the other
    const auto finish_bytes = [&] {
      if (is_valid_utf8(bytes)) {
        if (!bytes.empty()) {
          result.push_back(bytes);
        }
      } else {
        result.insert(result.end(), bytes.size(), "\xef\xbf\xbd");
      }
      bytes.clear();
    };
    for (auto& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += static_cast<char>(*byte);
      } else {
        finish_bytes();
        result.push_back(std::move(token));
      }
    }
    finish_bytes();
    tokens = std::move(result);
  }

 private:
  /// The byte that "<0x0A>" names; the reference takes a plus sign for the first digit as well.
  static std::optional<std::uint8_t> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) {
      return std::nullopt;
    }
    const auto digits = token.substr(token[3] == '+' ? 4 : 3, token[3] == '+' ? 1 : 2);
    std::uint8_t byte = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
    const bool all = result.ec == std::errc() && result.ptr == digits.data() + digits.size();
    return all ? std::optional(byte) : std::nullopt;
  }
};

class MetaspaceText final : public Decoder {
 public:
  explicit MetaspaceText(Metaspace settings) : settings_(std::move(settings)) {}

  void decode(std::vector<std::string>& tokens) const override {
    const bool drops = settings_.prepend != Metaspace::Prepend::never;  // in the first token, wherever they stand
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = replaced(tokens[i], settings_.replacement, i == 0 && drops ? "" : " ");
    }
  }

 private:
  Metaspace settings_;
};

class ReplaceText final : public Decoder {
 public:
  ReplaceText(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void decode(std::vector<std::string>& tokens) const override {
    for (auto& token : tokens) {
      token = pattern_.replaced(token, content_);
    }
  }

 private:
  Regex pattern_;
  std::string content_;
};

class StripText final : public Decoder {
 public:
  StripText(std::string content, std::int64_t start, std::int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  void decode(std::vector<std::string>& tokens) const override {
    for (auto& token : tokens) {
      std::string_view rest = token;
      for (std::int64_t i = 0; i < start_ && rest.starts_with(content_); ++i) {
        rest.remove_prefix(content_.size());
      }
      for (std::int64_t i = 0; i < stop_ && rest.ends_with(content_); ++i) {
        rest.remove_suffix(content_.size());
      }
      token = std::string(rest);
    }
  }

 private:
  std::string content_;
  std::int64_t start_;
  std::int64_t stop_;
};

class DecoderSequence final : public Decoder {
 public:
  explicit DecoderSequence(std::vector<std::unique_ptr<Decoder>> steps) : steps_(std::move(steps)) {}
  void decode(std::vector<std::string>& tokens) const override {
    for (const auto& step : steps_) {
      step->decode(tokens);
    }
  }

 private:
  std::vector<std::unique_ptr<Decoder>> steps_;
};

std::unique_ptr<Decoder> read_step(const json& part, std::string_view where) {
  const auto type = type_of(part, decoder_part, where);
  const auto place = fmt::format("{}: {}", where, decoder_part);
  if (type == "ByteLevel") {
    check_members(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, decoder_part, where);
    return std::make_unique<ByteLevelText>();
  }
  if (type == "ByteFallback" || type == "Fuse") {
    check_members(part, {"type"}, decoder_part, where);
    if (type == "Fuse") {
      return std::make_unique<Fuse>();
    }
    return std::make_unique<ByteFallback>();
  }
  if (type == "Metaspace") {
    return std::make_unique<MetaspaceText>(read_metaspace(part, decoder_part, where));
  }
  if (type == "Replace") {
    check_members(part, {"type", "pattern", "content"}, decoder_part, where);
    return std::make_unique<ReplaceText>(get_pattern(part, place), get<std::string>(part, "content", place));
  }
  if (type == "Strip") {
    check_members(part, {"type", "content", "start", "stop"}, decoder_part, where);
    std::string content;
    append_utf8(content, get_character(part, "content", place));
    const auto start = get<std::int64_t>(part, "start", place);
    const auto stop = get<std::int64_t>(part, "stop", place);
    if (start < 0 || stop < 0) {
      fail(place, fmt::format("start is {} and stop {}, expected 0 or more", start, stop));
    }
    return std::make_unique<StripText>(std::move(content), start, stop);
  }
  if (type == "Sequence") {
    check_members(part, {"type", "decoders"}, decoder_part, where);
    std::vector<std::unique_ptr<Decoder>> steps;
    for (const auto& step : get<std::vector<json>>(part, "decoders", place)) {
      steps.push_back(read_step(step, where));
    }
    return std::make_unique<DecoderSequence>(std::move(steps));
  }
  fail_unsupported(where, fmt::format("decoder of type {}", type),
                   "null, ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip, Sequence");
}

}  // namespace

std::unique_ptr<Decoder> read_decoder(const json& part, std::string_view where) {
  if (part.is_null()) {
    return std::make_unique<Blanks>();
  }
  return read_step(part, where);
}

}  // namespace gptqd::io
