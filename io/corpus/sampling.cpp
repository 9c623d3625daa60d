#include "io/corpus/sampling.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <utility>

#include "io/python_random.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int64_t c4_evaluation_windows = 256;
constexpr std::int64_t c4_new_documents = 1100;

template <class Value, std::size_t count>
Value from_name(std::string_view name, std::string_view option,
                const std::array<std::pair<std::string_view, Value>, count>& names) {
  for (const auto& [each, value] : names) {
    if (each == name) {
      return value;
    }
  }
  static_assert(count == 2);
  throw Error(ErrorKind::usage, fmt::format("{} {}: expected {} or {}", option, name, names[0].first, names[1].first));
}

/// A text's documents: what the file holds, or the one that a data set's rows make.
class Text {
 public:
  Text(const TextSource& source, Split split)
      : path_(source.path(split)),
        name_(path_.string()),
        reader_(path_, document_format(path_, source.convention)),
        separator_(row_separator(source.convention)) {}

  const std::string& name() const { return name_; }

  std::optional<std::string> next() {
    auto document = reader_.next();
    if (!separator_ || !document) {
      return document;
    }
    while (const auto row = reader_.next()) {
      *document += *separator_;
      *document += *row;
    }
    return document;
  }

  std::vector<std::string> all(std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
    std::vector<std::string> documents;
    while (std::ssize(documents) < most) {
      auto document = next();
      if (!document) {
        break;
      }
      documents.push_back(std::move(*document));
    }
    return documents;
  }

 private:
  std::filesystem::path path_;
  std::string name_;
  DocumentReader reader_;
  std::optional<std::string_view> separator_;
};

/// @param enough  stops behind the document that makes so many tokens
std::vector<std::int32_t> packed_tokens(const Tokenizer& tokenizer, Text& text, SpecialTokens special,
                                        std::int64_t enough = std::numeric_limits<std::int64_t>::max()) {
  std::vector<std::int32_t> tokens;
  while (std::ssize(tokens) < enough) {
    const auto document = text.next();
    if (!document) {
      break;
    }
    auto more = tokenizer.encode(*document, special);
    if (tokens.empty()) {
      tokens = std::move(more);
    } else {
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
  }
  return tokens;
}

/// Refuses fewer windows than were asked for.
TokenWindows all_of(TokenWindows windows, std::int64_t samples, const std::string& name) {
  if (windows.samples < samples) {
    throw Error(ErrorKind::input,
                fmt::format("{} makes {} windows of {} tokens without overlap, asked for {}; give a longer text, fewer "
                            "--samples, a smaller --seqlen, or --sampling random",
                            name, windows.samples, windows.seqlen, samples));
  }
  return windows;
}

TokenWindows sequential_in_documents(const Tokenizer& tokenizer, Text& text, std::int64_t samples,
                                     std::int64_t seqlen) {
  TokenWindows windows{.samples = 0, .seqlen = seqlen, .ids = {}};
  while (windows.samples < samples) {
    const auto document = text.next();
    if (!document) {
      break;
    }
    const auto tokens = tokenizer.encode(*document, SpecialTokens::add);
    const auto count = std::min(std::ssize(tokens) / seqlen, samples - windows.samples);
    windows.ids.insert(windows.ids.end(), tokens.begin(), tokens.begin() + count * seqlen);
    windows.samples += count;
  }
  return windows;
}

}  // namespace

Sampling sampling_from_name(std::string_view name) {
  return from_name(name, "--sampling",
                   std::array{std::pair(std::string_view("random"), Sampling::random),
                              std::pair(std::string_view("sequential"), Sampling::sequential)});
}

Documents documents_from_name(std::string_view name) {
  return from_name(name, "--documents",
                   std::array{std::pair(std::string_view("packed"), Documents::packed),
                              std::pair(std::string_view("separate"), Documents::separate)});
}

TokenWindows calibration_text_windows(const Tokenizer& tokenizer, const TextSource& source,
                                      const SamplingRequest& request) {
  check_window_counts(request.samples, request.seqlen);
  const bool is_c4 = source.convention == Convention::c4 || source.convention == Convention::c4_new;
  const auto documents = request.documents.value_or(is_c4 ? Documents::separate : Documents::packed);
  Text text(source, Split::calibration);
  if (request.sampling == Sampling::random) {
    return documents == Documents::separate
               ? crop_documents(tokenizer, text.all(), request.samples, request.seqlen, request.seed, text.name())
               : draw_windows(packed_tokens(tokenizer, text, SpecialTokens::add), request.samples, request.seqlen,
                              request.seed, text.name());
  }
  if (documents == Documents::separate) {
    return all_of(sequential_in_documents(tokenizer, text, request.samples, request.seqlen), request.samples,
                  text.name());
  }
  const auto tokens = packed_tokens(tokenizer, text, SpecialTokens::add, request.samples * request.seqlen);
  return all_of(sequential_windows(tokens, request.seqlen, request.samples, text.name()), request.samples, text.name());
}

TokenWindows evaluation_text_windows(const Tokenizer& tokenizer, const TextSource& source, std::int64_t seqlen,
                                     std::int64_t max_windows) {
  check_window_counts(1, seqlen);
  const auto at_most = [&](std::int64_t most) { return max_windows > 0 ? std::min(max_windows, most) : most; };
  Text text(source, Split::evaluation);
  switch (source.convention) {
    case Convention::c4:
      return crop_documents(tokenizer, text.all(), at_most(c4_evaluation_windows), seqlen, /*seed=*/0, text.name());
    case Convention::c4_new: {
      const auto joined = fmt::format("{}", fmt::join(text.all(c4_new_documents), " "));
      return sequential_windows(tokenizer.encode(joined, SpecialTokens::add), seqlen, at_most(c4_evaluation_windows),
                                text.name());
    }
    case Convention::plain: {
      const auto enough = max_windows > 0 && max_windows < most_tokens / seqlen ? max_windows * seqlen : most_tokens;
      return sequential_windows(packed_tokens(tokenizer, text, SpecialTokens::none, enough), seqlen, max_windows,
                                text.name());
    }
    default:
      return sequential_windows(packed_tokens(tokenizer, text, SpecialTokens::add), seqlen, max_windows, text.name());
  }
}

TokenWindows crop_documents(const Tokenizer& tokenizer, std::span<const std::string> documents, std::int64_t samples,
                            std::int64_t seqlen, std::uint64_t seed, std::string_view name) {
  check_window_counts(samples, seqlen);
  std::vector<bool> too_short(documents.size());
  std::size_t count_too_short = 0;
  std::map<std::size_t, std::vector<std::int32_t>> long_ones;  // tokens of documents that may be drawn again
  TokenWindows windows{.samples = 0, .seqlen = seqlen, .ids = {}};
  PythonRandom random(seed);
  while (windows.samples < samples) {
    if (count_too_short == documents.size()) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: none of its {} documents has more than {} tokens, which a window in one document "
                              "needs; give a smaller --seqlen or another text (calibration can also join the "
                              "documents: --documents packed)",
                              name, documents.size(), seqlen));
    }
    const auto i = static_cast<std::size_t>(random.randint(0, std::ssize(documents) - 1));
    if (too_short[i]) {
      continue;
    }
    auto& tokens = long_ones[i];
    if (tokens.empty()) {
      tokens = tokenizer.encode(documents[i], SpecialTokens::add);
    }
    if (std::ssize(tokens) <= seqlen) {
      long_ones.erase(i);
      too_short[i] = true;
      ++count_too_short;
      continue;
    }
    const auto start = tokens.begin() + random.randint(0, std::ssize(tokens) - seqlen - 1);
    windows.ids.insert(windows.ids.end(), start, start + seqlen);
    ++windows.samples;
  }
  return windows;
}

}  // namespace gptqd::io
