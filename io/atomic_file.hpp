#pragma once
/// @file Reading by position, and files and folders that appear whole or not at all.
///
/// Everything the product writes goes through here. A crash at any instant leaves the old file, the new file, or an
/// unfinished `*.tmp` / `*.partial` beside it, which the next write of the same name removes.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace gptqd::io {

/// Owner of a POSIX file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int value) : value_(value) {}
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();

  int get() const { return value_; }
  /// Gives the descriptor up without closing it.
  int release();

 private:
  int value_ = -1;
};

/// A regular file open for reading by position. Reading is thread-safe and never maps the file into memory: a file
/// that shrinks is an error message, not a SIGBUS.
class File {
 public:
  /// @throws Error (input) when there is no such file or it is not a regular file; (io) when it cannot be opened
  explicit File(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  /// Bytes at the time of opening.
  std::int64_t size() const { return size_; }
  /// Fills `out` from `offset`.
  /// @throws Error (input) when the file ends before, naming expected and actual size; (io) when reading fails
  void read_exactly(std::int64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  FileDescriptor descriptor_;
  std::int64_t size_ = 0;
};

/// The whole file. @throws Error (input) when it is missing or larger than `max_bytes`
std::vector<std::byte> read_file(const std::filesystem::path& path, std::int64_t max_bytes);

/// Writes `path` in one piece: `path`.tmp, fsync, rename, fsync of the folder.
/// @throws Error (io) naming path, operation, cause and next step; the temporary file is removed
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> data);
/// The same for text.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// When a file has to be on the disk.
enum class Durable {
  at_commit,
  with_its_folder,  ///< an AtomicFolder, whose commit() sees to it: one wait for the disk instead of one a file
};

/// A file written in pieces that appears under its name at commit(). Its bytes are on their way to the disk while more
/// are appended.
class AtomicFile {
 public:
  /// Creates `path`.tmp; one left behind by a crash is replaced.
  explicit AtomicFile(std::filesystem::path path, Durable durable = Durable::at_commit);
  AtomicFile(AtomicFile&&) noexcept = default;
  AtomicFile& operator=(AtomicFile&&) = delete;
  /// Without commit() removes the temporary file.
  ~AtomicFile();

  /// @throws Error (io); the object then only waits for its destruction
  void append(std::span<const std::byte> data);
  /// fsync, rename, fsync of the folder; the rename alone where durable with its folder.
  void commit();
  const std::filesystem::path& path() const { return path_; }
  /// Bytes appended so far.
  std::int64_t bytes() const { return bytes_; }

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  FileDescriptor descriptor_;
  Durable durable_;
  std::int64_t bytes_ = 0;
  std::int64_t under_way_ = 0;  // bytes that the system was told to write out
};

/// A folder filled as OUT.partial that appears as OUT at commit().
class AtomicFolder {
 public:
  /// Creates OUT.partial; one left behind by a crash is removed first.
  /// @throws Error (usage) when OUT is a file or a folder that is not empty; (io)
  explicit AtomicFolder(const std::filesystem::path& out);
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  /// Without commit() removes OUT.partial and what it holds.
  ~AtomicFolder();

  /// The folder to write into.
  const std::filesystem::path& path() const { return partial_; }
  /// fsync of every file and folder, then rename to OUT.
  void commit();

 private:
  std::filesystem::path out_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

}  // namespace gptqd::io
