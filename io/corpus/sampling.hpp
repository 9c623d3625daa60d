#pragma once
/// @file From texts to windows: for calibration and for evaluation.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/corpus.hpp"
#include "io/corpus/known_corpora.hpp"
#include "io/tokenizer.hpp"

namespace gptqd::io {

/// Which windows of a text are taken.
enum class Sampling : std::uint8_t {
  random,      ///< as the published code draws them, by Python's generator
  sequential,  ///< from the beginning, without overlap
};

/// How windows lie in the documents of a file. There is no padding in either.
enum class Documents : std::uint8_t {
  packed,    ///< the documents' tokens one after another are one stream, windows may hold several documents
  separate,  ///< a window lies in one document; documents that are too short are left out
};

/// @throws Error (usage) listing the names
Sampling sampling_from_name(std::string_view name);
Documents documents_from_name(std::string_view name);

struct SamplingRequest {
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::uint64_t seed = 0;
  Sampling sampling = Sampling::random;
  std::optional<Documents> documents = std::nullopt;  ///< default: separate for c4, else packed
};

/// Calibration windows of one text; the special tokens of the tokenizer's template stand once in each document.
///
/// - random, packed: draw_windows of the stream.
/// - random, separate: random.seed(seed) once; a document by random.randint(0, documents - 1), again while it has
///   seqlen tokens or fewer; then the window's start by random.randint(0, tokens - seqlen - 1). (The published code
///   lets a document of exactly seqlen tokens pass and then fails on it.)
/// - sequential, packed: consecutive windows of the stream. Reads no further than it has to.
/// - sequential, separate: consecutive windows of each document, the rest of each left out; reads no further either.
///
/// A text file, and one made of a data set's rows, is one document.
/// @throws Error (input) for a text that is too short, naming it; and as DocumentReader and Tokenizer::encode; (usage)
TokenWindows calibration_text_windows(const Tokenizer& tokenizer, const TextSource& source,
                                      const SamplingRequest& request);

/// Evaluation windows of one text, by its convention: consecutive windows without overlap of
/// - plain: the documents' tokens one after another, without special tokens;
/// - wikitext2, ptb, ptb_new: the joined rows, special tokens once;
/// - c4_new: the first 1,100 documents joined by " ", special tokens once, the first 256 windows;
/// or for c4 256 windows as random, separate draws them with seed 0.
/// @param max_windows  at most so many, 0 for all
/// @throws Error as calibration_text_windows
TokenWindows evaluation_text_windows(const Tokenizer& tokenizer, const TextSource& source, std::int64_t seqlen,
                                     std::int64_t max_windows);

/// Windows of documents that stay apart, the published code's way with C4: see calibration_text_windows.
/// @throws Error (input) when no document has more than seqlen tokens, or there is none; (usage)
TokenWindows crop_documents(const Tokenizer& tokenizer, std::span<const std::string> documents, std::int64_t samples,
                            std::int64_t seqlen, std::uint64_t seed, std::string_view name);

}  // namespace gptqd::io
