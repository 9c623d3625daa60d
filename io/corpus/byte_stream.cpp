#include "io/corpus/byte_stream.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "io/atomic_file.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 16;

class MemoryStream : public ByteStream {
 public:
  explicit MemoryStream(std::string_view rest) : rest_(rest) {}

  std::size_t read(std::span<char> out) override {
    const std::size_t count = std::min(out.size(), rest_.size());
    std::copy_n(rest_.begin(), count, out.begin());
    rest_.remove_prefix(count);
    return count;
  }

 private:
  std::string_view rest_;
};

class FileStream : public ByteStream {
 public:
  explicit FileStream(File file) : file_(std::move(file)) {}

  std::size_t read(std::span<char> out) override {
    const auto count = std::min<std::int64_t>(std::ssize(out), file_.size() - place_);
    file_.read_exactly(place_, std::as_writable_bytes(out.first(static_cast<std::size_t>(count))));
    place_ += count;
    return static_cast<std::size_t>(count);
  }

 private:
  File file_;
  std::int64_t place_ = 0;
};

class GunzipStream : public ByteStream {
 public:
  GunzipStream(std::unique_ptr<ByteStream> compressed, std::string name)
      : compressed_(std::move(compressed)), name_(std::move(name)), input_(buffer_bytes) {
    constexpr int gzip_alone = 15 + 16;  // the largest window; no zlib header
    require(inflateInit2(&state_, gzip_alone) == Z_OK, "zlib cannot start");
  }
  GunzipStream(const GunzipStream&) = delete;
  GunzipStream& operator=(const GunzipStream&) = delete;
  ~GunzipStream() override { inflateEnd(&state_); }

  std::size_t read(std::span<char> out) override {
    std::size_t done = 0;
    while (done < out.size() && !finished_) {
      done += inflate_some(out.subspan(done));
    }
    return done;
  }

 private:
  std::size_t inflate_some(std::span<char> out) {
    if (state_.avail_in == 0) {
      const std::size_t count = compressed_->read(input_);
      taken_ += static_cast<std::int64_t>(count);
      if (count == 0) {
        if (!between_members_) {
          fail("it ends in the middle: the file was not copied or downloaded to its end");
        }
        finished_ = true;
        return 0;
      }
      state_.next_in = reinterpret_cast<Bytef*>(input_.data());
      state_.avail_in = static_cast<uInt>(count);
    }
    if (between_members_ && !start_member()) {
      return 0;
    }
    const auto room = static_cast<uInt>(std::min(out.size(), std::size_t{1} << 30));
    state_.next_out = reinterpret_cast<Bytef*>(out.data());
    state_.avail_out = room;
    const int status = inflate(&state_, Z_NO_FLUSH);
    if (status == Z_STREAM_END) {
      between_members_ = true;
      behind_first_ = true;
    } else if (status == Z_MEM_ERROR) {
      throw Error(ErrorKind::internal, fmt::format("out of memory while decompressing {}", name_));
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
      fail(state_.msg == nullptr ? "its data is damaged" : state_.msg);
    }
    return room - state_.avail_out;
  }

  /// False when what follows are zeros, which end nothing and start nothing.
  bool start_member() {
    while (behind_first_ && state_.avail_in > 0 && *state_.next_in == 0) {
      ++state_.next_in;
      --state_.avail_in;
    }
    if (state_.avail_in == 0) {
      return false;
    }
    inflateReset(&state_);
    between_members_ = false;
    return true;
  }

  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(ErrorKind::input,
                fmt::format("{}: cannot be decompressed near byte {} of the gzip data: {}; try gzip -t, and get the "
                            "file again",
                            name_, taken_ - static_cast<std::int64_t>(state_.avail_in), reason));
  }

  std::unique_ptr<ByteStream> compressed_;
  std::string name_;
  std::vector<char> input_;
  z_stream state_{};
  std::int64_t taken_ = 0;       // bytes of compressed_
  bool between_members_ = true;  // before the first, between two, or behind the last
  bool behind_first_ = false;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> memory_stream(std::string_view memory) { return std::make_unique<MemoryStream>(memory); }

std::unique_ptr<ByteStream> gunzip(std::unique_ptr<ByteStream> compressed, std::string name) {
  return std::make_unique<GunzipStream>(std::move(compressed), std::move(name));
}

bool starts_like_gzip(std::string_view data) { return data.starts_with("\x1f\x8b"); }

std::unique_ptr<ByteStream> open_text(const std::filesystem::path& path) {
  File file(path);
  if (file.size() == 0) {
    throw Error(ErrorKind::input, fmt::format("text file {} is empty", path.string()));
  }
  std::array<char, 2> head{};
  const auto present = std::min<std::int64_t>(file.size(), std::ssize(head));
  file.read_exactly(0, std::as_writable_bytes(std::span(head).first(static_cast<std::size_t>(present))));
  const bool is_gzip = starts_like_gzip({head.data(), head.size()});
  if (!is_gzip && path.extension() == ".gz") {
    throw Error(ErrorKind::input,
                fmt::format("{} is called .gz but does not begin as gzip does (1f 8b); give it the name of what it is, "
                            "or get it again",
                            path.string()));
  }
  auto stream = std::make_unique<FileStream>(std::move(file));
  if (is_gzip) {
    return gunzip(std::move(stream), path.string());
  }
  return stream;
}

LineReader::LineReader(std::unique_ptr<ByteStream> stream, std::string name, std::int64_t longest)
    : stream_(std::move(stream)),
      name_(std::move(name)),
      longest_(static_cast<std::size_t>(longest)),
      buffer_(buffer_bytes) {}

std::optional<std::string_view> LineReader::next() {
  long_line_.clear();
  bool begun = false;
  while (true) {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = stream_->read(buffer_);
      if (end_ == 0) {
        had_end_ = false;
        number_ += begun ? 1 : 0;
        return begun ? std::optional<std::string_view>(long_line_) : std::nullopt;
      }
    }
    const std::string_view rest(buffer_.data() + begin_, end_ - begin_);
    const auto length = std::min(rest.find('\n'), rest.size());
    if (length > longest_ - long_line_.size()) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}, line {}: has more than {} bytes, expected one document a line; cut the document into "
                      "several",
                      name_, number_ + 1, longest_));
    }
    had_end_ = length < rest.size();
    begin_ += length + (had_end_ ? 1 : 0);
    if (had_end_ && !begun) {
      ++number_;
      return rest.substr(0, length);
    }
    begun = true;
    long_line_ += rest.substr(0, length);
    if (had_end_) {
      ++number_;
      return long_line_;
    }
  }
}

}  // namespace gptqd::io
