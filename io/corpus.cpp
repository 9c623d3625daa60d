#include "io/corpus.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/python_random.hpp"
#include "io/safetensors.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int64_t most_text_bytes = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t most_tokens = std::int64_t{1} << 31;  // of all windows together

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

void check_counts(std::int64_t samples, std::int64_t seqlen) {
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

template <class Stored>
std::vector<std::int32_t> read_ids(const SafetensorsFile& file, const TensorInfo& tensor) {
  std::vector<Stored> stored(index(tensor.bytes) / sizeof(Stored));
  file.read(tensor, std::as_writable_bytes(std::span(stored)));
  const std::int64_t seqlen = tensor.shape[1];
  for (std::size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] < 0 || stored[i] > std::numeric_limits<std::int32_t>::max()) {
      const auto place = static_cast<std::int64_t>(i);
      throw Error(ErrorKind::input, fmt::format("{}: input_ids[{}, {}] is {}, which is no token id",
                                                file.path().string(), place / seqlen, place % seqlen, stored[i]));
    }
  }
  if constexpr (std::is_same_v<Stored, std::int32_t>) {
    return stored;
  } else {
    std::vector<std::int32_t> ids(stored.size());
    std::transform(stored.begin(), stored.end(), ids.begin(), [](Stored id) { return static_cast<std::int32_t>(id); });
    return ids;
  }
}

}  // namespace

std::string TokenWindows::hash() const {
  Hasher hasher;
  const std::int64_t shape[] = {samples, seqlen};
  hasher.update(std::as_bytes(std::span(shape)));
  hasher.update(std::as_bytes(std::span(ids)));
  return hasher.hex();
}

bool is_token_file(const std::filesystem::path& path) { return path.extension() == ".safetensors"; }

TokenWindows read_token_file(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const TensorInfo* tensor = file.find("input_ids");
  if (tensor == nullptr) {
    std::string names;
    for (const auto& other : file.tensors()) {
      if (names.size() < 200) {
        names += fmt::format("{}{}", names.empty() ? "" : ", ", other.name);
      }
    }
    throw Error(ErrorKind::input,
                fmt::format("token file {}: has no tensor input_ids (I32 or I64 [samples, seqlen]); it has {}",
                            path.string(), names.empty() ? "none" : names));
  }
  const bool is_i32 = tensor->dtype == DType::i32;
  const bool has_elements = tensor->shape.size() == 2 && tensor->shape[0] > 0 && tensor->shape[1] > 0;
  if (!has_elements || !(is_i32 || tensor->dtype == DType::i64)) {
    throw Error(
        ErrorKind::input,
        fmt::format("token file {}: input_ids is {} [{}], expected I32 or I64 [samples, seqlen], both at least 1{}",
                    path.string(), name_of(tensor->dtype), fmt::join(tensor->shape, ", "),
                    tensor->shape.size() == 1 ? "; cut the stream into samples and store them as rows" : ""));
  }
  if (tensor->bytes / size_of(tensor->dtype) > most_tokens) {
    throw Error(ErrorKind::input,
                fmt::format("token file {}: input_ids is [{}], more than {} tokens; store fewer samples", path.string(),
                            fmt::join(tensor->shape, ", "), most_tokens));
  }
  return {.samples = tensor->shape[0],
          .seqlen = tensor->shape[1],
          .ids = is_i32 ? read_ids<std::int32_t>(file, *tensor) : read_ids<std::int64_t>(file, *tensor)};
}

std::string read_text_file(const std::filesystem::path& path) {
  const File file(path);
  if (file.size() == 0) {
    throw Error(ErrorKind::input, fmt::format("text file {} is empty", path.string()));
  }
  if (file.size() >= most_text_bytes) {
    throw Error(ErrorKind::input, fmt::format("text file {} has {} bytes, expected less than 2 GiB; take a part of it",
                                              path.string(), file.size()));
  }
  std::string text(index(file.size()), '\0');
  file.read_exactly(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::vector<std::int32_t> read_text_tokens(const Tokenizer& tokenizer, const std::filesystem::path& path,
                                           SpecialTokens special) {
  const auto text = read_text_file(path);
  return with_context(fmt::format("tokenizing {}", path.string()), [&] { return tokenizer.encode(text, special); });
}

TokenWindows draw_windows(std::span<const std::int32_t> tokens, std::int64_t samples, std::int64_t seqlen,
                          std::uint64_t seed, std::string_view name) {
  check_counts(samples, seqlen);
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
  check_counts(samples, seqlen);
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
