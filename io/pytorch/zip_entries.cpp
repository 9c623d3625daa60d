#include "io/pytorch/zip_entries.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <span>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "io/pytorch/quoted_text.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using namespace std::string_view_literals;

constexpr std::string_view local_signature = "PK\x03\x04"sv;
constexpr std::string_view entry_signature = "PK\x01\x02"sv;
constexpr std::string_view end_signature = "PK\x05\x06"sv;
constexpr std::string_view end64_signature = "PK\x06\x06"sv;
constexpr std::string_view locator_signature = "PK\x06\x07"sv;
constexpr std::int64_t local_bytes = 30;
constexpr std::int64_t end_bytes = 22;
constexpr std::int64_t end64_bytes = 56;
constexpr std::int64_t locator_bytes = 20;
constexpr std::int64_t longest_comment = 0xffff;

constexpr std::uint16_t zip64_field = 1;
constexpr std::uint32_t in_zip64_field = 0xffffffff;
constexpr std::uint16_t encrypted_flag = 1;

constexpr std::size_t longest_name = 1024;
constexpr std::int64_t most_directory_bytes = std::int64_t{256} << 20;

constexpr std::string_view how_to_save =
    "load it with torch and save it again (torch.save, or save_pretrained, which writes safetensors)";

/// Takes little-endian fields from the front of a text; what is missing is an error of `fail`.
template <class Fail>
class Fields {
 public:
  Fields(std::string_view text, const Fail& fail) : text_(text), fail_(fail) {}

  std::string_view text(std::size_t bytes) {
    if (text_.size() < bytes) {
      fail_();
    }
    const std::string_view result = text_.substr(0, bytes);
    text_.remove_prefix(bytes);
    return result;
  }
  template <class T>
  T number() {
    T result = 0;
    std::memcpy(&result, text(sizeof(T)).data(), sizeof(T));
    return result;
  }
  bool empty() const { return text_.empty(); }

 private:
  std::string_view text_;
  const Fail& fail_;
};

/// Where the directory lies, and how many entries it has.
struct DirectoryPlace {
  std::uint64_t entries = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
};

/// An entry as the directory tells it.
struct DirectoryEntry {
  std::string_view name;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc32 = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t bytes = 0;
  std::uint64_t header = 0;  ///< where its local header lies
};

class ZipReader {
 public:
  explicit ZipReader(const File& file) : file_(file) {}

  std::vector<ZipEntry> entries() const {
    const DirectoryPlace place = find_directory();
    if (place.entries > static_cast<std::uint64_t>(max_zip_entries) ||
        place.bytes > static_cast<std::uint64_t>(most_directory_bytes)) {
      fail(fmt::format("its zip directory has {} entries and {} bytes, more than the {} and {} allowed", place.entries,
                       place.bytes, max_zip_entries, most_directory_bytes));
    }
    if (!lies_inside(place.offset, place.bytes)) {
      fail_damaged("it would lie outside the file");
    }
    const std::string text = read(static_cast<std::int64_t>(place.offset), static_cast<std::int64_t>(place.bytes));
    const auto ends = [this] { fail_damaged("it ends inside an entry"); };
    Fields fields(text, ends);
    std::vector<ZipEntry> result;
    for (std::uint64_t i = 0; i < place.entries; ++i) {
      result.push_back(locate(next(fields)));
    }
    std::unordered_set<std::string_view> names;
    for (const auto& entry : result) {
      if (!names.insert(entry.name).second) {
        fail_damaged(fmt::format("two entries {}", quoted_text(entry.name)));
      }
    }
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& offence) const {
    throw Error(ErrorKind::input, fmt::format("{}: {}", file_.path().string(), offence));
  }
  [[noreturn]] void fail_damaged(std::string_view offence) const {
    fail(fmt::format("its zip directory is damaged: {}; download the file again", offence));
  }

  std::string read(std::int64_t offset, std::int64_t bytes) const {
    std::string text(static_cast<std::size_t>(bytes), '\0');
    file_.read_exactly(offset, std::as_writable_bytes(std::span(text)));
    return text;
  }

  bool lies_inside(std::uint64_t offset, std::uint64_t bytes) const {
    const auto size = static_cast<std::uint64_t>(file_.size());
    return offset <= size && bytes <= size - offset;
  }

  DirectoryPlace find_directory() const {
    const std::int64_t tail_begin = std::max<std::int64_t>(0, file_.size() - end_bytes - longest_comment);
    const std::string tail = read(tail_begin, file_.size() - tail_begin);
    const auto ends = [this] { fail_damaged("it ends inside its last record"); };
    // The last record is the one whose comment reaches to the end of the file.
    for (auto found = tail.rfind(end_signature); found != std::string::npos;
         found = found == 0 ? std::string::npos : tail.rfind(end_signature, found - 1)) {
      if (tail.size() - found < static_cast<std::size_t>(end_bytes)) {
        continue;
      }
      Fields fields(std::string_view(tail).substr(found + end_signature.size()), ends);
      fields.text(6);  // disks, entries on this disk
      DirectoryPlace place;
      place.entries = fields.template number<std::uint16_t>();
      place.bytes = fields.template number<std::uint32_t>();
      place.offset = fields.template number<std::uint32_t>();
      if (fields.template number<std::uint16_t>() != tail.size() - found - static_cast<std::size_t>(end_bytes)) {
        continue;
      }
      return with_zip64(place, tail_begin + static_cast<std::int64_t>(found));
    }
    fail_no_zip();
  }

  /// The 64-bit numbers, where a locator in front of the last record says that there are some.
  DirectoryPlace with_zip64(DirectoryPlace place, std::int64_t end) const {
    if (end < locator_bytes) {
      return place;
    }
    const std::string locator = read(end - locator_bytes, locator_bytes);
    const auto ends = [this] { fail_damaged("it ends inside its zip64 record"); };
    Fields fields(locator, ends);
    if (fields.text(locator_signature.size()) != locator_signature) {
      return place;
    }
    fields.text(4);  // disk
    const auto offset = fields.template number<std::uint64_t>();
    if (!lies_inside(offset, end64_bytes)) {
      fail_damaged("its zip64 record would lie outside the file");
    }
    const std::string record = read(static_cast<std::int64_t>(offset), end64_bytes);
    Fields numbers(record, ends);
    if (numbers.text(end64_signature.size()) != end64_signature) {
      fail_damaged("its zip64 record is not where its locator says");
    }
    numbers.text(28);  // its size, versions, disks, entries on this disk
    place.entries = numbers.template number<std::uint64_t>();
    place.bytes = numbers.template number<std::uint64_t>();
    place.offset = numbers.template number<std::uint64_t>();
    return place;
  }

  template <class Fail>
  DirectoryEntry next(Fields<Fail>& fields) const {
    if (fields.text(entry_signature.size()) != entry_signature) {
      fail_damaged("an entry without its signature");
    }
    DirectoryEntry entry;
    fields.text(4);  // versions
    entry.flags = fields.template number<std::uint16_t>();
    entry.method = fields.template number<std::uint16_t>();
    fields.text(4);  // time
    entry.crc32 = fields.template number<std::uint32_t>();
    entry.stored_bytes = fields.template number<std::uint32_t>();
    entry.bytes = fields.template number<std::uint32_t>();
    const auto name_bytes = fields.template number<std::uint16_t>();
    const auto extra_bytes = fields.template number<std::uint16_t>();
    const auto comment_bytes = fields.template number<std::uint16_t>();
    fields.text(8);  // disk, attributes
    entry.header = fields.template number<std::uint32_t>();
    entry.name = fields.text(name_bytes);
    const std::string_view extra = fields.text(extra_bytes);
    fields.text(comment_bytes);
    if (entry.name.empty() || entry.name.size() > longest_name) {
      fail_damaged(fmt::format("a name of {} bytes, expected 1 to {}", entry.name.size(), longest_name));
    }
    apply_zip64(entry, extra);
    return entry;
  }

  /// Numbers that do not fit 32 bits stand in an extra field, those that do fit are left out there.
  void apply_zip64(DirectoryEntry& entry, std::string_view extra) const {
    const std::array wide{&entry.bytes, &entry.stored_bytes, &entry.header};
    if (std::none_of(wide.begin(), wide.end(), [](const auto* number) { return *number == in_zip64_field; })) {
      return;
    }
    const auto ends = [&] { fail_damaged(fmt::format("no 64-bit numbers for {}", quoted_text(entry.name))); };
    Fields fields(extra, ends);
    while (true) {
      const auto id = fields.template number<std::uint16_t>();
      const auto bytes = fields.template number<std::uint16_t>();
      Fields field(fields.text(bytes), ends);
      if (id != zip64_field) {
        continue;
      }
      for (auto* number : wide) {
        if (*number == in_zip64_field) {
          *number = field.template number<std::uint64_t>();
        }
      }
      return;
    }
  }

  /// Where the entry's bytes are: behind its local header, which has fields of its own length.
  ZipEntry locate(const DirectoryEntry& entry) const {
    const std::string name = quoted_text(entry.name);
    if ((entry.flags & encrypted_flag) != 0) {
      fail(fmt::format("its zip entry {} is encrypted; {}", name, how_to_save));
    }
    if (entry.method != 0) {
      fail(fmt::format("its zip entry {} is compressed (method {}), expected stored as torch.save does; {}", name,
                       entry.method, how_to_save));
    }
    if (entry.stored_bytes != entry.bytes) {
      fail_damaged(fmt::format("{} has {} bytes, but {} are stored", name, entry.bytes, entry.stored_bytes));
    }
    const std::int64_t header_bytes = local_bytes + std::ssize(entry.name);
    if (!lies_inside(entry.header, static_cast<std::uint64_t>(header_bytes))) {
      fail_damaged(fmt::format("{} would begin at byte {} of {}", name, entry.header, file_.size()));
    }
    const std::string header = read(static_cast<std::int64_t>(entry.header), header_bytes);
    const auto ends = [&] { fail_damaged(fmt::format("{} has no header", name)); };
    Fields fields(header, ends);
    const bool is_signed = fields.text(local_signature.size()) == local_signature;
    fields.text(22);  // what the directory says too
    const auto name_bytes = fields.template number<std::uint16_t>();
    const auto extra_bytes = fields.template number<std::uint16_t>();
    if (!is_signed || name_bytes != entry.name.size() || fields.text(name_bytes) != entry.name) {
      fail_damaged(fmt::format("{} does not begin at byte {}", name, entry.header));
    }
    const std::uint64_t offset = entry.header + static_cast<std::uint64_t>(header_bytes) + extra_bytes;
    if (!lies_inside(offset, entry.bytes)) {
      fail_damaged(fmt::format("{} would have {} bytes from byte {} of {}", name, entry.bytes, offset, file_.size()));
    }
    return {.name = std::string(entry.name),
            .offset = static_cast<std::int64_t>(offset),
            .bytes = static_cast<std::int64_t>(entry.bytes),
            .crc32 = entry.crc32};
  }

  /// Says what the file is instead, where its first bytes tell.
  [[noreturn]] void fail_no_zip() const {
    const std::string first = read(0, std::min(file_.size(), std::int64_t{64}));
    // A pickled integer, torch's magic number, begins files before the zip format.
    if (first.starts_with("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv)) {
      fail(fmt::format("a file of torch before 1.6 (one pickle, no zip archive) is not read; {}", how_to_save));
    }
    if (first.starts_with("version https://git-lfs")) {
      fail("a pointer of Git LFS stands in place of the weights; fetch them: git lfs pull");
    }
    if (first.starts_with(local_signature)) {
      fail(fmt::format("a zip file without a directory at its end ({} bytes); it is truncated: download it again",
                       file_.size()));
    }
    fail(fmt::format("no zip archive ({} bytes), as torch.save writes them; download it again, or {}", file_.size(),
                     how_to_save));
  }

  const File& file_;
};

}  // namespace

std::vector<ZipEntry> read_zip_entries(const File& file) { return ZipReader(file).entries(); }

}  // namespace gptqd::io
