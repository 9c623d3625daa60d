#include "io/pytorch/pytorch_file.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "io/checksum.hpp"
#include "io/pytorch/quoted_text.hpp"
#include "io/pytorch/strided_read.hpp"
#include "io/pytorch/unpickler.hpp"
#include "io/pytorch/zip_entries.hpp"
#include "kernels/base/error.hpp"

static_assert(std::endian::native == std::endian::little, "the data of a storage is little-endian, read as it lies");

namespace gptqd::io {

namespace {

constexpr std::string_view pickle_name = "data.pkl";

/// The entries of one archive by their names without the folder that torch.save puts them all into.
class Archive {
 public:
  explicit Archive(const File& file) : file_(file), entries_(read_zip_entries(file)) {
    const std::string folder = find_folder();
    for (const auto& entry : entries_) {
      const std::string_view name = entry.name;
      if (name.starts_with(folder)) {
        by_name_.emplace(name.substr(folder.size()), &entry);
      }
    }
    refuse_programs();
    refuse_big_endian();
  }

  const ZipEntry* find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }

  std::vector<std::byte> read_pickle() const {
    const ZipEntry& entry = *find(pickle_name);
    if (entry.bytes > max_pickle_bytes) {
      fail(fmt::format("the pickle of the weights has {} bytes, more than the {} allowed", entry.bytes,
                       max_pickle_bytes));
    }
    std::vector<std::byte> pickle(static_cast<std::size_t>(entry.bytes));
    file_.read_exactly(entry.offset, pickle);
    const auto crc = static_cast<std::uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(pickle.data()), static_cast<z_size_t>(pickle.size())));
    if (crc != entry.crc32) {
      fail(fmt::format("the pickle of the weights has CRC-32 {:08x}, expected {:08x}; it is damaged: download it again",
                       crc, entry.crc32));
    }
    return pickle;
  }

  std::string hash(std::span<const std::byte> pickle) const {
    Hasher hasher;
    hasher.update(pickle);
    for (const auto& entry : entries_) {
      const std::array<std::int64_t, 3> facts{entry.offset, entry.bytes, entry.crc32};
      hasher.update(std::as_bytes(std::span(facts)));
    }
    return hasher.hex();
  }

  [[noreturn]] void fail(const std::string& offence) const {
    throw Error(ErrorKind::input, fmt::format("{}: {}", file_.path().string(), offence));
  }

 private:
  /// "archive/" where the pickle is "archive/data.pkl".
  std::string find_folder() const {
    std::string folder;
    for (const auto& entry : entries_) {
      const auto slash = entry.name.find('/');
      if (slash == std::string::npos || std::string_view(entry.name).substr(slash + 1) != pickle_name) {
        continue;
      }
      if (!folder.empty()) {
        fail(fmt::format("a zip archive with two pickles, {} and {}; expected one, as torch.save writes",
                         quoted_text(folder + std::string(pickle_name)), quoted_text(entry.name)));
      }
      folder = entry.name.substr(0, slash + 1);
    }
    if (folder.empty()) {
      fail("a zip archive without a FOLDER/data.pkl: not written by torch.save");
    }
    return folder;
  }

  void refuse_programs() const {
    for (const auto& [name, entry] : by_name_) {
      if (name == "constants.pkl" || name.starts_with("code/")) {
        fail(
            fmt::format("a TorchScript program (entry {}), expected weights alone; save model.state_dict() with "
                        "torch.save, or use save_pretrained",
                        quoted_text(entry->name)));
      }
    }
  }

  void refuse_big_endian() const {
    const ZipEntry* entry = find("byteorder");
    if (entry == nullptr) {
      return;  // torch before 2.0 knew no other order
    }
    constexpr std::string_view expected = "little";
    std::string order(static_cast<std::size_t>(std::min(entry->bytes, std::int64_t{16})), '\0');
    file_.read_exactly(entry->offset, std::as_writable_bytes(std::span(order)));
    if (order != expected) {
      fail(fmt::format("byte order {}, expected \"{}\"; load and save it with torch on a little-endian machine",
                       quoted_text(order), expected));
    }
  }

  const File& file_;
  std::vector<ZipEntry> entries_;
  std::unordered_map<std::string_view, const ZipEntry*> by_name_;
};

/// Whether element number i of the dense form is element number i from the view's first.
bool is_dense(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  std::int64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) {
      return false;
    }
    expected *= shape[i];
  }
  return true;
}

TensorInfo place(const Archive& archive, PickledTensor&& tensor) {
  const ZipEntry* entry = archive.find("data/" + tensor.storage_key);
  if (entry == nullptr) {
    archive.fail(fmt::format("tensor {} lies in the storage {}, which is missing; download the file again",
                             quoted_text(tensor.name), quoted_text(tensor.storage_key)));
  }
  if (tensor.storage_bytes > entry->bytes) {
    archive.fail(fmt::format("tensor {}: its storage {} has {} bytes, expected {}; download the file again",
                             quoted_text(tensor.name), quoted_text(tensor.storage_key), entry->bytes,
                             tensor.storage_bytes));
  }
  TensorInfo info{.name = std::move(tensor.name),
                  .dtype = tensor.dtype,
                  .shape = std::move(tensor.shape),
                  .bytes = 0,
                  .file_index = 0,
                  .offset = entry->offset};
  info.bytes = dense_bytes(info.shape, info.dtype).value();
  if (info.bytes > 0) {
    info.offset += tensor.offset * size_of(info.dtype);
    if (!is_dense(info.shape, tensor.strides)) {
      info.strides = std::move(tensor.strides);
    }
  }
  return info;
}

}  // namespace

PytorchFile::PytorchFile(const std::filesystem::path& path) : file_(path) {
  const Archive archive(file_);
  const std::vector<std::byte> pickle = archive.read_pickle();
  for (auto& tensor : unpickle_state_dict(pickle, path.string())) {
    tensors_.push_back(place(archive, std::move(tensor)));
  }
  std::stable_sort(tensors_.begin(), tensors_.end(),
                   [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });
  header_hash_ = archive.hash(pickle);
}

void PytorchFile::read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const {
  require(offset >= 0 && offset <= info.bytes && std::ssize(out) <= info.bytes - offset,
          "pytorch file: a range outside the tensor");
  if (info.strides.empty()) {
    file_.read_exactly(info.offset + offset, out);
  } else {
    read_strided(file_, info, offset, out);
  }
}

}  // namespace gptqd::io
