#pragma once
/// @file The documents of a text file: plain text, JSON lines, and the rows of known data sets.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "io/corpus/byte_stream.hpp"

namespace gptqd::io {

enum class DocumentFormat : std::uint8_t {
  text,            ///< the whole file is one document, as it is
  json_lines,      ///< each line is one, see json_line_text
  wikitext_lines,  ///< each line is a row as the `datasets` library has it: with its "\n"; a blank line is empty
  ptb_lines,       ///< each line is a row, without white space at both ends
};

/// What the file's name says, with or without .gz behind it: json_lines for .jsonl, .ndjson and .json (C4's shards),
/// else text.
DocumentFormat document_format(const std::filesystem::path& path);

/// Longest line of JSON lines and of rows.
inline constexpr std::int64_t most_line_bytes = std::int64_t{64} << 20;
/// Most text that is taken from one file, decompressed. A shard of C4 has 0.8 GB.
inline constexpr std::int64_t most_text_bytes = std::int64_t{1} << 30;

/// The text of one line of JSON lines: its `text`; or its `messages`, a list of {"role", "content"}, as
///
///     ROLE: CONTENT
///     (empty line)
///     ROLE: CONTENT
///
/// in their order. A content may be null (nothing), or a list of parts, of which those with "type": "text" are taken.
/// Where there are both, `text` counts.
/// @param where  file and line, for the message
/// @throws Error (input) for what is no JSON object in valid UTF-8, and for one of another shape
std::string json_line_text(std::string_view line, std::string_view where);

/// Gives a file's documents one after another; one is in memory at a time.
class DocumentReader {
 public:
  /// @throws Error as open_text
  DocumentReader(const std::filesystem::path& path, DocumentFormat format);
  /// @param most_bytes  of text; a line counts whole, and as 64 bytes at least
  DocumentReader(std::unique_ptr<ByteStream> stream, DocumentFormat format, std::string name,
                 std::int64_t most_bytes = most_text_bytes);

  /// The next document; nothing at the end. Lines of JSON lines that hold only white space are skipped.
  /// @throws Error (input) naming file and line for what cannot be read, and when there is more than most_bytes of text
  std::optional<std::string> next();

 private:
  std::optional<std::string> read_whole();
  std::optional<std::string> read_line();
  void count(std::size_t bytes);

  DocumentFormat format_;
  std::string name_;
  std::int64_t most_bytes_;
  std::int64_t text_bytes_ = 0;
  std::unique_ptr<ByteStream> whole_;  // format text
  std::optional<LineReader> lines_;    // the others
};

}  // namespace gptqd::io
