#include "io/corpus.hpp"

#include <algorithm>

#include "io/checksum.hpp"
#include "io/python_random.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace

std::string TokenWindows::hash() const {
  Hasher hasher;
  const std::int64_t shape[] = {samples, seqlen};
  hasher.update(std::as_bytes(std::span(shape)));
  hasher.update(std::as_bytes(std::span(ids)));
  return hasher.hex();
}

void check_window_counts(std::int64_t samples, std::int64_t seqlen) {
  if (samples <= 0 || seqlen <= 0) {
    throw Error(ErrorKind::usage,
                fmt::format("asked for {} samples of {} tokens; both must be at least 1", samples, seqlen));
  }
  if (seqlen > most_tokens / samples) {
    throw Error(ErrorKind::usage,
                fmt::format("asked for {} samples of {} tokens, more than {} tokens in all; take fewer "
                            "or shorter ones",
                            samples, seqlen, most_tokens));
  }
}

TokenWindows draw_windows(std::span<const std::int32_t> tokens, std::int64_t samples, std::int64_t seqlen,
                          std::uint64_t seed, std::string_view name) {
  check_window_counts(samples, seqlen);
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count <= seqlen) {
    throw Error(ErrorKind::input,
                fmt::format("{} has {} tokens, fewer than one sample of {} needs ({}); give a longer text or a smaller "
                            "--seqlen",
                            name, count, seqlen, seqlen + 1));
  }
  TokenWindows windows{.samples = samples, .seqlen = seqlen, .ids = {}};
  windows.ids.reserve(index(samples * seqlen));
  PythonRandom random(seed);
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    // The published code never draws the last window (randint includes its upper end, which is one too small).
    const auto window = tokens.subspan(index(random.randint(0, count - seqlen - 1)), index(seqlen));
    windows.ids.insert(windows.ids.end(), window.begin(), window.end());
  }
  return windows;
}

TokenWindows sequential_windows(std::span<const std::int32_t> tokens, std::int64_t seqlen, std::int64_t max_windows,
                                std::string_view name) {
  if (seqlen <= 0 || max_windows < 0) {
    throw Error(ErrorKind::usage,
                fmt::format("asked for at most {} windows (0: all) of {} tokens", max_windows, seqlen));
  }
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::int64_t samples = count / seqlen;
  if (samples == 0) {
    throw Error(ErrorKind::input, fmt::format("{} has {} tokens, fewer than one window of {}; give a longer text or a "
                                              "smaller --seqlen",
                                              name, count, seqlen));
  }
  if (max_windows > 0) {
    samples = std::min(samples, max_windows);
  }
  const auto used = tokens.first(index(samples * seqlen));
  return {.samples = samples, .seqlen = seqlen, .ids = {used.begin(), used.end()}};
}

TokenWindows take(const TokenWindows& windows, std::int64_t samples, std::int64_t seqlen, std::string_view name) {
  check_window_counts(samples, seqlen);
  if (samples > windows.samples || seqlen > windows.seqlen) {
    throw Error(ErrorKind::input,
                fmt::format("{} holds {} samples of {} tokens, asked for {} of {}; lower --samples or "
                            "--seqlen",
                            name, windows.samples, windows.seqlen, samples, seqlen));
  }
  TokenWindows result{.samples = samples, .seqlen = seqlen, .ids = {}};
  result.ids.reserve(index(samples * seqlen));
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    const auto row = windows.window(sample).first(index(seqlen));
    result.ids.insert(result.ids.end(), row.begin(), row.end());
  }
  return result;
}

void check_vocabulary(const TokenWindows& windows, std::int64_t vocab, std::string_view where) {
  for (std::size_t i = 0; i < windows.ids.size(); ++i) {
    if (windows.ids[i] < 0 || windows.ids[i] >= vocab) {
      const auto place = static_cast<std::int64_t>(i);
      throw Error(
          ErrorKind::input,
          fmt::format("{}: sample {}, position {} has the token id {}, but the model's vocabulary has {} ids (0 "
                      "to {}); take tokens of this model's tokenizer",
                      where, place / windows.seqlen, place % windows.seqlen, windows.ids[i], vocab, vocab - 1));
    }
  }
}

}  // namespace gptqd::io
