#pragma once
/// @file What the tests of PyTorch files share: pickles and zip archives written byte by byte.
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gptqd::io::test {

/// The `bytes` low bytes of a number, little-endian.
inline std::string little_endian(std::uint64_t number, std::size_t bytes) {
  std::string text(bytes, '\0');
  std::memcpy(text.data(), &number, bytes);
  return text;
}

/// Writes a pickle of protocol 2, opcode by opcode, as torch.save does (but without its memo).
class Pickle {
 public:
  Pickle() = default;
  explicit Pickle(std::string bytes) : bytes_(std::move(bytes)) {}

  Pickle& op(std::string_view opcode) {
    bytes_ += opcode;
    return *this;
  }
  Pickle& text(std::string_view value) { return op("X" + little_endian(value.size(), 4) + std::string(value)); }
  Pickle& integer(std::int64_t value) {
    return op(std::string("\x8a\x08") + little_endian(static_cast<std::uint64_t>(value), 8));
  }
  Pickle& global(const std::string& module, const std::string& name) { return op("c" + module + "\n" + name + "\n"); }
  Pickle& numbers(const std::vector<std::int64_t>& values) {
    op("(");
    for (const auto value : values) {
      integer(value);
    }
    return op("t");
  }
  Pickle& storage(const std::string& type, std::string_view key, std::int64_t elements) {
    return op("(").text("storage").global("torch", type).text(key).text("cpu").integer(elements).op("tQ");
  }
  Pickle& ordered_dict() { return global("collections", "OrderedDict").op(")R"); }
  /// A tensor of the storage that `storage` pushes.
  Pickle& tensor(std::string_view storage, std::int64_t offset, const std::vector<std::int64_t>& shape,
                 const std::vector<std::int64_t>& strides) {
    global("torch._utils", "_rebuild_tensor_v2").op("(").op(storage).integer(offset).numbers(shape).numbers(strides);
    return op("\x89").ordered_dict().op("tR");
  }

  const std::string& bytes() const { return bytes_; }
  /// The whole pickle of an object.
  std::string file() const { return "\x80\x02" + bytes_ + "."; }
  /// The whole pickle of a dict with these items, each a name and a tensor.
  std::string dict_file() const { return "\x80\x02}(" + bytes_ + "u."; }

 private:
  std::string bytes_;
};

/// One entry of an archive, and what to say of it that is not so.
struct ZipPart {
  std::string name;
  std::string data = {};
  std::uint64_t hole = 0;  ///< bytes of zeros behind the data, which take no place on the disk
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::optional<std::uint64_t> claimed_bytes = {};
  std::optional<std::uint64_t> claimed_offset = {};  ///< of the entry's header
};

/// Writes a zip file; with `zip64` every size and place stands in the 64-bit fields, and one record of them at the end.
inline void write_zip(const std::filesystem::path& path, const std::vector<ZipPart>& parts, bool zip64 = true) {
  std::ofstream file(path, std::ios::binary);
  std::string directory;
  const auto position = [&] { return static_cast<std::uint64_t>(file.tellp()); };
  const auto put = [&](const std::string& text) { file.write(text.data(), static_cast<std::streamsize>(text.size())); };
  const auto short_field = [&](std::uint64_t number) { return little_endian(zip64 ? 0xffffffff : number, 4); };
  for (const auto& part : parts) {
    const std::uint64_t bytes = part.claimed_bytes.value_or(part.data.size() + part.hole);
    const std::uint64_t offset = part.claimed_offset.value_or(position());
    const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(part.data.data()), part.data.size());
    const std::string common = little_endian(45, 2) + little_endian(part.flags, 2) + little_endian(part.method, 2) +
                               little_endian(0, 4) + little_endian(crc, 4) + short_field(bytes) + short_field(bytes) +
                               little_endian(part.name.size(), 2);
    const std::string sizes = little_endian(bytes, 8) + little_endian(bytes, 8);
    const std::string local_extra = zip64 ? little_endian(1, 2) + little_endian(16, 2) + sizes : "";
    const std::string extra =
        zip64 ? little_endian(1, 2) + little_endian(24, 2) + sizes + little_endian(offset, 8) : "";
    put("PK\x03\x04" + common + little_endian(local_extra.size(), 2) + part.name + local_extra + part.data);
    file.seekp(static_cast<std::streamoff>(part.hole), std::ios::cur);
    directory += "PK\x01\x02" + little_endian(45, 2) + common + little_endian(extra.size(), 2) + std::string(10, '\0') +
                 short_field(offset) + part.name + extra;
  }
  const std::uint64_t begin = position();
  put(directory);
  if (zip64) {
    const std::uint64_t end = position();
    put("PK\x06\x06" + little_endian(44, 8) + little_endian(45, 2) + little_endian(45, 2) + little_endian(0, 8) +
        little_endian(parts.size(), 8) + little_endian(parts.size(), 8) + little_endian(directory.size(), 8) +
        little_endian(begin, 8));
    put("PK\x06\x07" + little_endian(0, 4) + little_endian(end, 8) + little_endian(1, 4));
  }
  const std::uint64_t count = zip64 ? 0xffff : parts.size();
  put("PK\x05\x06" + little_endian(0, 4) + little_endian(count, 2) + little_endian(count, 2) +
      short_field(directory.size()) + short_field(begin) + little_endian(0, 2));
}

/// A file as torch.save writes it: the pickle and storages 0, 1, ...
inline void write_torch_file(const std::filesystem::path& path, const std::string& pickle,
                             const std::vector<std::string>& storages) {
  std::vector<ZipPart> parts{{.name = "model/data.pkl", .data = pickle}, {.name = "model/byteorder", .data = "little"}};
  for (std::size_t i = 0; i < storages.size(); ++i) {
    parts.push_back({.name = "model/data/" + std::to_string(i), .data = storages[i]});
  }
  write_zip(path, parts);
}

}  // namespace gptqd::io::test
