#include "io/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/base/error.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

// One read or write call moves at most 2 GiB; smaller pieces keep the process open to signals.
constexpr std::size_t largest_transfer = std::size_t{64} << 20;
// Left alone, Linux begins to write a file out after seconds, or when memory is full of it.
constexpr std::int64_t written_out_together = std::int64_t{16} << 20;

std::string_view next_step(int code) {
  switch (code) {
    case ENOSPC:
    case EDQUOT:
      return "free space there, or choose another folder, and run again";
    case EACCES:
    case EPERM:
      return "check the permissions of the file and its folder";
    case EROFS:
      return "the file system is read-only: choose another folder";
    case ENOENT:
    case ENOTDIR:
      return "check that its folder exists";
    case EMFILE:
    case ENFILE:
      return "too many files are open: raise the limit (ulimit -n)";
    case EFBIG:
      return "the file system or a limit (ulimit -f) forbids files of this size";
    default:
      return "check the device and the system's log, and run again";
  }
}

[[noreturn]] void fail(std::string_view operation, const fs::path& path, int code) {
  throw Error(ErrorKind::io, fmt::format("cannot {} {}: {} (errno {}); {}", operation, path.string(),
                                         std::system_category().message(code), code, next_step(code)));
}

[[noreturn]] void fail(std::string_view operation, const fs::path& path) { fail(operation, path, errno); }

constexpr int most_retries = 20;
constexpr std::chrono::milliseconds retry_pause{25};

/// A system call at the fault point `point`, repeated where that is safe: it did nothing (EINTR, EAGAIN), or it looks
/// a name up again after a server of network files has forgotten it (ESTALE of open). Never on EIO, of fsync least of
/// all: the system has then dropped what was to be written, and a second fsync would succeed.
template <class Call>
auto retry(std::string_view point, Call call, bool looks_up_a_name = false) {
  for (int pauses = 0;;) {
    const int injected = fault_errno(point);
    decltype(call()) result = -1;
    if (injected != 0) {
      errno = injected;
    } else {
      result = call();
    }
    if (result >= 0) {
      return result;
    }
    const bool may_pass = errno == EAGAIN || (errno == ESTALE && looks_up_a_name);
    if (errno != EINTR && (!may_pass || ++pauses > most_retries)) {
      return result;
    }
    if (errno != EINTR) {
      std::this_thread::sleep_for(retry_pause);
    }
  }
}

FileDescriptor open_again(const fs::path& path, int flags) {
  return FileDescriptor(retry(
      "file.open", [&] { return ::open(path.c_str(), flags | O_CLOEXEC); }, true));
}

void sync(const FileDescriptor& descriptor, const fs::path& path) {
  if (retry("file.fsync", [&] { return ::fsync(descriptor.get()); }) != 0) {
    fail("flush to disk", path);
  }
}

/// Asks the system to write a part of a file to the disk (bytes 0: all from `offset` on), without waiting. A hint: file
/// systems that do not know it do nothing.
void start_writing_out(const FileDescriptor& descriptor, std::int64_t offset, std::int64_t bytes) {
  ::sync_file_range(descriptor.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
}

void sync_folder(const fs::path& folder) {
  const FileDescriptor descriptor = open_again(folder, O_RDONLY | O_DIRECTORY);
  if (descriptor.get() < 0) {
    fail("open the folder", folder);
  }
  // Some network file systems refuse fsync of a folder (EINVAL): they order renames themselves.
  if (retry("folder.fsync", [&] { return ::fsync(descriptor.get()); }) != 0 && errno != EINVAL && errno != ENOTSUP) {
    fail("flush the folder to disk", folder);
  }
}

fs::path folder_of(const fs::path& path) {
  const fs::path folder = path.parent_path();
  return folder.empty() ? fs::path(".") : folder;
}

fs::path with_suffix(fs::path path, const char* suffix) {
  path += suffix;
  return path;
}

/// The folder's name with links resolved and without a slash at the end.
fs::path resolved(const fs::path& path) {
  std::error_code code;
  fs::path result = fs::weakly_canonical(fs::absolute(path), code);
  if (code) {
    fail("resolve", path, code.value());
  }
  if (!result.has_filename()) {
    result = result.parent_path();
  }
  return result;
}

}  // namespace

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept : value_(other.release()) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  FileDescriptor taken(std::move(other));
  std::swap(value_, taken.value_);
  return *this;
}

FileDescriptor::~FileDescriptor() {
  if (value_ >= 0) {
    ::close(value_);
  }
}

int FileDescriptor::release() { return std::exchange(value_, -1); }

File::File(fs::path path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  descriptor_ = open_again(path_, O_RDONLY | O_NONBLOCK);
  if (descriptor_.get() < 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      throw Error(ErrorKind::input, fmt::format("{}: no such file", path_.string()));
    }
    fail("open", path_);
  }
  struct stat status {};
  if (::fstat(descriptor_.get(), &status) != 0) {
    fail("get the size of", path_);
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::input, fmt::format("{}: expected a regular file, got {}", path_.string(),
                                              S_ISDIR(status.st_mode) ? "a folder" : "a device or pipe"));
  }
  size_ = status.st_size;
}

void File::read_exactly(std::int64_t offset, std::span<std::byte> out) const {
  require(offset >= 0, "file: negative offset");
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t wanted = std::min(out.size() - done, largest_transfer);
    const auto got = retry("file.read", [&] {
      return ::pread(descriptor_.get(), out.data() + done, wanted,
                     static_cast<off_t>(offset) + static_cast<off_t>(done));
    });
    if (got < 0) {
      fail("read", path_);
    }
    if (got == 0) {
      throw Error(ErrorKind::input, fmt::format("{}: ends after {} bytes, expected at least {}; it is truncated or "
                                                "changed while it was read: copy it again",
                                                path_.string(), offset + static_cast<std::int64_t>(done),
                                                offset + static_cast<std::int64_t>(out.size())));
    }
    done += static_cast<std::size_t>(got);
  }
}

std::vector<std::byte> read_file(const fs::path& path, std::int64_t max_bytes) {
  const File file(path);
  if (file.size() > max_bytes) {
    throw Error(ErrorKind::input, fmt::format("{}: {} bytes, more than the {} that such a file may have", path.string(),
                                              file.size(), max_bytes));
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(file.size()));
  file.read_exactly(0, bytes);
  return bytes;
}

void write_file_atomically(const fs::path& path, std::span<const std::byte> data) {
  AtomicFile file(path);
  file.append(data);
  file.commit();
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

AtomicFile::AtomicFile(fs::path path, Durable durable)
    : path_(std::move(path)), temporary_(with_suffix(path_, ".tmp")), durable_(durable) {
  const auto create = [&] {
    return retry("file.create",
                 [&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  };
  int descriptor = create();
  if (descriptor < 0 && errno == EEXIST) {
    // Left behind by a crash. Removing it, unlike truncating, follows no link and spoils no file with a second name.
    ::unlink(temporary_.c_str());
    descriptor = create();
  }
  if (descriptor < 0) {
    fail("create", temporary_);
  }
  descriptor_ = FileDescriptor(descriptor);
}

AtomicFile::~AtomicFile() {
  if (descriptor_.get() >= 0) {
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::append(std::span<const std::byte> data) {
  require(descriptor_.get() >= 0, "atomic file: append after commit");
  while (!data.empty()) {
    const auto written = retry(
        "file.write", [&] { return ::write(descriptor_.get(), data.data(), std::min(data.size(), largest_transfer)); });
    if (written < 0) {
      fail("write", temporary_);
    }
    fault_point("file.written");
    data = data.subspan(static_cast<std::size_t>(written));
    bytes_ += written;
  }
  if (bytes_ - under_way_ >= written_out_together) {
    start_writing_out(descriptor_, under_way_, bytes_ - under_way_);
    under_way_ = bytes_;
  }
}

void AtomicFile::commit() {
  require(descriptor_.get() >= 0, "atomic file: committed twice");
  if (durable_ == Durable::at_commit) {
    sync(descriptor_, temporary_);
  }
  if (retry("file.rename", [&] { return ::rename(temporary_.c_str(), path_.c_str()); }) != 0) {
    fail(fmt::format("rename {} to", temporary_.filename().string()), path_);
  }
  descriptor_ = FileDescriptor();
  fault_point("file.renamed");
  if (durable_ == Durable::at_commit) {
    sync_folder(folder_of(path_));
  }
}

AtomicFolder::AtomicFolder(const fs::path& out) : out_(resolved(out)), partial_(with_suffix(out_, ".partial")) {
  std::error_code code;
  const auto status = fs::status(out_, code);
  if (fs::exists(status) && !fs::is_directory(status)) {
    throw Error(ErrorKind::usage,
                fmt::format("{} exists and is not a folder; choose another output folder", out_.string()));
  }
  if (fs::is_directory(status) && !fs::is_empty(out_, code)) {
    throw Error(ErrorKind::usage,
                fmt::format("{} exists and is not empty; remove it or choose another output folder", out_.string()));
  }
  fs::remove_all(partial_, code);
  if (code) {
    fail("remove", partial_, code.value());
  }
  fs::create_directories(partial_, code);
  if (code) {
    fail("create", partial_, code.value());
  }
}

AtomicFolder::~AtomicFolder() {
  if (!committed_) {
    std::error_code ignored;
    fs::remove_all(partial_, ignored);
  }
}

void AtomicFolder::commit() {
  require(!committed_, "atomic folder: committed twice");
  std::error_code code;
  std::vector<std::pair<fs::path, FileDescriptor>> files;
  for (auto entry = fs::recursive_directory_iterator(partial_, code); !code && entry != fs::end(entry);
       entry.increment(code)) {
    if (entry->is_directory()) {
      sync_folder(entry->path());
    } else if (entry->is_regular_file()) {
      FileDescriptor descriptor = open_again(entry->path(), O_RDONLY);
      if (descriptor.get() < 0) {
        fail("open", entry->path());
      }
      start_writing_out(descriptor, 0, 0);
      files.emplace_back(entry->path(), std::move(descriptor));
    }
  }
  if (code) {
    fail("list", partial_, code.value());
  }
  // All on their way before the first is waited for: one commit of the file system's journal serves many.
  for (const auto& [path, descriptor] : files) {
    sync(descriptor, path);
  }
  sync_folder(partial_);
  // An empty folder of that name is replaced; one that has been filled meanwhile is not.
  if (retry("folder.rename", [&] { return ::rename(partial_.c_str(), out_.c_str()); }) != 0) {
    fail(fmt::format("rename {} to", partial_.filename().string()), out_);
  }
  committed_ = true;
  sync_folder(folder_of(out_));
}

}  // namespace gptqd::io
