#pragma once
/// @file Bytes in order, of a file or from memory, decompressed where they are gzip.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Bytes that are read once, from the first to the last.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  /// Fills `out` from its front. @return how many bytes; fewer than `out` has room for only at the end
  virtual std::size_t read(std::span<char> out) = 0;
};

/// The bytes of `memory`, which has to outlive the stream.
std::unique_ptr<ByteStream> memory_stream(std::string_view memory);

/// What gzip (RFC 1952) compressed: one member or several behind one another, zeros behind the last ignored, as
/// Python's gzip module does. Reading throws Error (input) for damaged and truncated data, naming `name` and the place,
/// and needs some 100 kB of memory, whatever the data expands to.
std::unique_ptr<ByteStream> gunzip(std::unique_ptr<ByteStream> compressed, std::string name);

/// Whether data that begins like this is gzip.
bool starts_like_gzip(std::string_view data);

/// The text of the file, decompressed when its first bytes are gzip's, whatever its name.
/// @throws Error (input) if it is missing, a folder or empty, or called .gz and is something else; (io)
std::unique_ptr<ByteStream> open_text(const std::filesystem::path& path);

/// Cuts a stream at "\n".
class LineReader {
 public:
  /// @param longest  bytes of the longest line that is read
  LineReader(std::unique_ptr<ByteStream> stream, std::string name, std::int64_t longest);

  /// The next line without its "\n", valid until the next call; nothing at the end. A file that ends with "\n" has no
  /// empty line behind it.
  /// @throws Error (input) for a line longer than `longest`; and whatever the stream throws
  std::optional<std::string_view> next();
  /// Of the line that next() gave, from 1.
  std::int64_t number() const { return number_; }
  /// Whether that line ended with "\n".
  bool had_end() const { return had_end_; }

 private:
  std::unique_ptr<ByteStream> stream_;
  std::string name_;
  std::size_t longest_;
  std::vector<char> buffer_;  // [begin_, end_) is not given out yet
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::string long_line_;  // a line that straddles fillings of the buffer
  std::int64_t number_ = 0;
  bool had_end_ = false;
};

}  // namespace gptqd::io
