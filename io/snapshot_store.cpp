#include "io/snapshot_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "io/hdf5_image.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;
using hdf5::write_attribute;

constexpr std::int64_t snapshot_version = 1;
constexpr std::int64_t max_file_bytes = std::int64_t{1} << 40;

/// Calls `body` with a number of the type whose bits elements of `dtype` have.
template <class Body>
void with_word_of(DType dtype, Body body) {
  if (size_of(dtype) == 2) {
    body(std::uint16_t{});
  } else {
    require(size_of(dtype) == 4, fmt::format("snapshot: elements of type {}", name_of(dtype)));
    body(std::uint32_t{});
  }
}

}  // namespace

fs::path SnapshotStore::generation_path(std::int64_t block) const {
  return folder_ / fmt::format("after_{:05}", block);
}

CheckedFile SnapshotStore::file(std::int64_t block, std::int64_t leaf) const {
  return CheckedFile(generation_path(block) / fmt::format("leaf_{:03}.h5", leaf));
}

std::vector<std::int64_t> SnapshotStore::generations() const {
  std::vector<std::int64_t> blocks;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder_, none)) {
    long long block = 0;
    if (std::sscanf(entry.path().filename().c_str(), "after_%lld", &block) == 1) {
      blocks.push_back(block);
    }
  }
  std::sort(blocks.rbegin(), blocks.rend());
  return blocks;
}

bool SnapshotStore::is_whole(std::int64_t block, const std::vector<std::int64_t>& leaves) const {
  return std::all_of(leaves.begin(), leaves.end(),
                     [&](std::int64_t leaf) { return file(block, leaf).state(false).status == FileStatus::valid; });
}

void SnapshotStore::write(const Snapshot& snapshot, std::span<const std::byte> data) const {
  require(std::ssize(data) == snapshot.bytes(), "snapshot: the data has another size than its shape says");
  const auto target = file(snapshot.block, snapshot.leaf);
  with_context(fmt::format("writing {}", target.path().string()), [&] {
    fault_point("snapshot.write");
    auto image = hdf5::make_image(data.size() + 65536, "storing hidden states", [&](hid_t file) {
      write_attribute(file, "format_version", snapshot_version);
      write_attribute(file, "fingerprint", snapshot.fingerprint);
      write_attribute(file, "block", snapshot.block);
      write_attribute(file, "leaf", snapshot.leaf);
      write_attribute(file, "first_sample", snapshot.first_sample);
      write_attribute(file, "dtype", std::string(name_of(snapshot.dtype)));
      with_word_of(snapshot.dtype, [&](auto word) {
        using Word = decltype(word);
        hdf5::write_dataset<Word>(file, "hidden",
                                  {reinterpret_cast<const Word*>(data.data()), data.size() / sizeof(Word)},
                                  hdf5::matrix(snapshot.tokens, snapshot.hidden));
      });
    });
    target.write(image.bytes(), nlohmann::json::object());
  });
}

void SnapshotStore::read(const Snapshot& expected, std::span<std::byte> data) const {
  require(std::ssize(data) == expected.bytes(), "snapshot: the buffer has another size than the shape says");
  const auto source = file(expected.block, expected.leaf);
  const std::string name = source.path().string();
  fault_point("snapshot.read");
  const auto image = source.read(max_file_bytes).first;
  hdf5::read_image(image.bytes(), name, "it is no snapshot of this program", [&](hid_t file) {
    const hdf5::ObjectReader reader(file, name);
    if (reader.integer("format_version") != snapshot_version) {
      reader.fail("it has another format version");
    }
    Snapshot found = expected;
    found.fingerprint = reader.text("fingerprint");
    found.block = reader.integer("block");
    found.leaf = reader.integer("leaf");
    found.first_sample = reader.integer("first_sample");
    found.dtype = dtype_from_name(reader.text("dtype")).value_or(DType::boolean);
    if (!(found == expected)) {
      reader.fail("it is another run's, or of other samples");
    }
    with_word_of(expected.dtype, [&](auto word) {
      const auto words = reader.dataset<decltype(word)>("hidden", hdf5::matrix(expected.tokens, expected.hidden));
      std::memcpy(data.data(), words.data(), data.size());
    });
  });
}

void SnapshotStore::remove(std::int64_t block) const {
  fault_point("snapshot.remove");
  std::error_code error;
  fs::remove_all(generation_path(block), error);
  if (error) {
    throw Error(ErrorKind::io, fmt::format("cannot remove {}: {}; check the folder's permissions",
                                           generation_path(block).string(), error.message()));
  }
  fs::remove(folder_, error);  // where it was the last: an empty folder goes, a full one stays
}

}  // namespace gptqd::io
