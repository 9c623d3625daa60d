#pragma once
/// @file Calibration and evaluation tokens as windows of one length. Where they come from is in io/corpus/.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Most tokens of all windows together.
inline constexpr std::int64_t most_tokens = std::int64_t{1} << 31;

/// Windows of token ids, all of one length.
struct TokenWindows {
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::vector<std::int32_t> ids;  ///< [samples, seqlen], row-major

  std::span<const std::int32_t> window(std::int64_t sample) const {
    return std::span(ids).subspan(static_cast<std::size_t>(sample * seqlen), static_cast<std::size_t>(seqlen));
  }
  /// XXH3-128 of samples, seqlen (int64) and ids (int32), little-endian, as 32 hexadecimal digits.
  std::string hash() const;

  friend bool operator==(const TokenWindows&, const TokenWindows&) = default;
};

/// Random windows of a token stream as the published GPTQ code draws them: random.seed(seed) once, then for each sample
/// i = random.randint(0, T - seqlen - 1) and the window is tokens[i : i + seqlen]. T is the number of tokens.
///
/// @param name  what the tokens come from, for the message
/// @throws Error (input) if T <= seqlen; (usage) unless samples, seqlen > 0 and their product is at most most_tokens
TokenWindows draw_windows(std::span<const std::int32_t> tokens, std::int64_t samples, std::int64_t seqlen,
                          std::uint64_t seed, std::string_view name = "the calibration text");

/// Consecutive windows without overlap, floor(T / seqlen) of them; the rest is left out. Perplexities use these.
///
/// @param max_windows  at most so many, 0 for all
/// @throws Error (input) if T < seqlen; (usage) if seqlen <= 0 or max_windows < 0
TokenWindows sequential_windows(std::span<const std::int32_t> tokens, std::int64_t seqlen, std::int64_t max_windows,
                                std::string_view name = "the evaluation text");

/// The first `seqlen` tokens of the first `samples` windows. @throws Error (input) if there are fewer; (usage)
TokenWindows take(const TokenWindows& windows, std::int64_t samples, std::int64_t seqlen,
                  std::string_view name = "the token file");

/// @throws Error (usage) unless samples and seqlen are positive and their product is at most most_tokens
void check_window_counts(std::int64_t samples, std::int64_t seqlen);

/// Checks that 0 <= id < vocab for all ids.
/// @param where  what the windows come from, for the message
/// @throws Error (input) naming sample, position and id of the first that is not
void check_vocabulary(const TokenWindows& windows, std::int64_t vocab, std::string_view where);

}  // namespace gptqd::io
