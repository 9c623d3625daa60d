#include "io/shard_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <system_error>
#include <tuple>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/hdf5_image.hpp"
#include "io/json_file.hpp"
#include "kernels/base/fault_point.hpp"
#include "version.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t format_version = 1;
constexpr std::int64_t max_shard_file_bytes = std::int64_t{1} << 40;
using hdf5::check;
using hdf5::Handle;
using hdf5::matrix;
using hdf5::ObjectReader;
using hdf5::write_attribute;

template <class T>
void write_dataset(hid_t group, const char* name, const std::vector<T>& data, const hdf5::Extents& extents) {
  hdf5::write_dataset<T>(group, name, data, extents);
}

void write_linear(hid_t file, const PackedLinear& linear, std::int64_t index) {
  const Handle properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "H5Pcreate");
  check(H5Pset_obj_track_times(properties, false), "H5Pset_obj_track_times");
  const Handle group(H5Gcreate2(file, linear.name.c_str(), H5P_DEFAULT, properties, H5P_DEFAULT), H5Gclose,
                     "H5Gcreate");
  write_attribute(group, "index", index);
  write_attribute(group, "bits", linear.bits);
  write_attribute(group, "group_size", linear.group_size);
  write_attribute(group, "sym", linear.sym ? 1 : 0);
  write_attribute(group, "rows", linear.rows);
  write_attribute(group, "cols", linear.cols);
  write_attribute(group, "record", linear.record.dump());
  write_dataset(group, "qweight", linear.qweight, matrix(linear.cols * linear.bits / 32, linear.rows));
  write_dataset(group, "scales", linear.scales, matrix(linear.groups(), linear.rows));
  write_dataset(group, "zeros", linear.zeros, matrix(linear.groups(), linear.rows));
  write_dataset(group, "g_idx", linear.g_idx, {static_cast<hsize_t>(linear.cols)});
}

std::size_t data_bytes(const PackedLinear& linear) {
  return 4 * linear.qweight.size() + 2 * linear.scales.size() + linear.zeros.size() + 4 * linear.g_idx.size();
}

void check_linears(const BlockShard& shard) {
  std::set<std::string_view> names;
  for (const auto& linear : shard.linears) {
    validate(linear, ErrorKind::internal);
    require(!linear.name.empty() && linear.name.find('/') == std::string::npos && linear.name != ".",
            fmt::format("shard: \"{}\" cannot name a group of an HDF5 file", linear.name));
    require(names.insert(linear.name).second, fmt::format("shard: two linears are named \"{}\"", linear.name));
  }
}

std::vector<std::string> group_names(hid_t file) {
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  check(H5Literate(file, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names), "H5Literate");
  return names;
}

/// What a shard says of a linear, and where its arrays lie.
struct StoredLinear {
  std::int64_t index = 0;  ///< among the block's linears
  PackedLinear linear;     ///< without its arrays
  hdf5::Range qweight;
  hdf5::Range scales;
  hdf5::Range zeros;
  hdf5::Range g_idx;
};

StoredLinear find_linear(hid_t file, const std::string& name, const std::string& where) {
  const Handle group(H5Gopen2(file, name.c_str(), H5P_DEFAULT), H5Gclose, "H5Gopen");
  const ObjectReader reader(group, fmt::format("{}: {}", where, name));
  const std::int64_t bits = reader.integer("bits");
  StoredLinear stored;
  PackedLinear& linear = stored.linear;
  linear.name = name;
  linear.group_size = reader.integer("group_size");
  linear.sym = reader.integer("sym") != 0;
  linear.rows = reader.integer("rows");
  linear.cols = reader.integer("cols");
  linear.bits = bits >= 2 && bits <= 8 ? static_cast<int>(bits) : 0;
  // Before any shape is computed from these numbers.
  if (const auto obstacle = format_obstacle(linear.rows, linear.cols, linear.bits, linear.group_size)) {
    reader.fail(*obstacle);
  }
  linear.record = reader.json("record");
  stored.qweight = reader.range<std::uint32_t>("qweight", matrix(linear.cols * linear.bits / 32, linear.rows));
  stored.scales = reader.range<Half>("scales", matrix(linear.groups(), linear.rows));
  stored.zeros = reader.range<std::uint8_t>("zeros", matrix(linear.groups(), linear.rows));
  stored.g_idx = reader.range<std::int32_t>("g_idx", {static_cast<hsize_t>(linear.cols)});
  stored.index = reader.integer("index");
  return stored;
}

template <class T>
std::vector<T> elements(std::span<const std::byte> image, const hdf5::Range& range, const std::string& where) {
  if (range.offset > image.size() || range.count > (image.size() - range.offset) / sizeof(T)) {
    throw Error(ErrorKind::input, fmt::format("{}: a dataset of {} elements at byte {} of {}", where, range.count,
                                              range.offset, image.size()));
  }
  std::vector<T> values(range.count);
  std::memcpy(values.data(), image.data() + range.offset, range.count * sizeof(T));
  return values;
}

PackedLinear take_linear(std::span<const std::byte> image, const StoredLinear& stored, const std::string& where) {
  PackedLinear linear = stored.linear;
  linear.qweight = elements<std::uint32_t>(image, stored.qweight, where);
  linear.scales = elements<Half>(image, stored.scales, where);
  linear.zeros = elements<std::uint8_t>(image, stored.zeros, where);
  linear.g_idx = elements<std::int32_t>(image, stored.g_idx, where);
  validate(linear);
  return linear;
}

/// What the image says of its block, the linears without their arrays; and where those lie.
std::pair<BlockShard, std::vector<StoredLinear>> find_linears(hid_t file, const std::string& name) {
  const ObjectReader reader(file, name);
  const std::int64_t version = reader.integer("format_version");
  if (version != format_version) {
    reader.fail(fmt::format("the shard's format version is {}, this program reads {}; use the version that wrote it",
                            version, format_version));
  }
  BlockShard shard;
  shard.fingerprint = reader.text("fingerprint");
  shard.block = reader.integer("block");
  shard.spec = reader.json("spec");
  std::vector<StoredLinear> linears;
  for (const auto& group : group_names(file)) {
    linears.push_back(find_linear(file, group, name));
  }
  std::sort(linears.begin(), linears.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  for (const auto& stored : linears) {
    if (stored.index != std::ssize(shard.linears)) {
      reader.fail(
          fmt::format("{} has the index {}, expected {}", stored.linear.name, stored.index, shard.linears.size()));
    }
    shard.linears.push_back(stored.linear);
  }
  return {std::move(shard), std::move(linears)};
}

std::pair<BlockShard, std::vector<StoredLinear>> find_linears(std::span<const std::byte> image,
                                                              const std::string& name) {
  std::pair<BlockShard, std::vector<StoredLinear>> found;
  hdf5::read_image(image, name, "it is no shard of this program",
                   [&](hid_t file) { found = find_linears(file, name); });
  return found;
}

}  // namespace

LargeMemory to_image(const BlockShard& shard) {
  check_linears(shard);
  std::size_t bytes = std::size_t{1} << 20;
  for (const auto& linear : shard.linears) {
    bytes += data_bytes(linear) + 4096;
  }
  return hdf5::make_image(bytes, fmt::format("storing block {}", shard.block), [&](hid_t file) {
    write_attribute(file, "format_version", format_version);
    write_attribute(file, "tool_version", fmt::format("gptq-dist {}", version));
    write_attribute(file, "fingerprint", shard.fingerprint);
    write_attribute(file, "block", shard.block);
    write_attribute(file, "spec", shard.spec.dump());
    std::int64_t index = 0;
    for (const auto& linear : shard.linears) {
      write_linear(file, linear, index++);
    }
  });
}

BlockShard from_image(std::span<const std::byte> image, const std::string& name) {
  auto [shard, linears] = find_linears(image, name);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    shard.linears[i] = take_linear(image, linears[i], name);
  }
  return std::move(shard);
}

struct ShardFile::Content {
  std::string name;
  LargeMemory image;
  BlockShard account;
  std::vector<StoredLinear> linears;
};

ShardFile::ShardFile(std::unique_ptr<Content> content) : content_(std::move(content)) {}
ShardFile::ShardFile(ShardFile&&) noexcept = default;
ShardFile& ShardFile::operator=(ShardFile&&) noexcept = default;
ShardFile::~ShardFile() = default;

const BlockShard& ShardFile::account() const { return content_->account; }

PackedLinear ShardFile::read(std::size_t index) const {
  return take_linear(std::as_const(content_->image).bytes(), content_->linears.at(index), content_->name);
}

fs::path ShardStore::shard_path(std::int64_t block) const {
  return folder_ / "shards" / fmt::format("block_{:05}.h5", block);
}

void ShardStore::write(const BlockShard& shard) const {
  with_context(fmt::format("writing {}", shard_path(shard.block).string()),
               [&] { file(shard.block).write(to_image(shard).bytes(), shard.run); });
  fault_point("shard.listed");
}

ShardState ShardStore::state(std::int64_t block, bool whole) const { return file(block).state(whole); }

nlohmann::json ShardStore::run_of(std::int64_t block) const {
  const auto sidecar = file(block).find_sidecar();
  return sidecar ? sidecar->run : nlohmann::json();
}

ShardFile ShardStore::open(std::int64_t block) const {
  auto content = std::make_unique<ShardFile::Content>();
  content->name = shard_path(block).string();
  nlohmann::json run;
  std::tie(content->image, run) = file(block).read(max_shard_file_bytes);
  std::tie(content->account, content->linears) = find_linears(std::as_const(content->image).bytes(), content->name);
  if (content->account.block != block) {
    throw Error(ErrorKind::input,
                fmt::format("{}: holds block {}, expected {}; the file was renamed: remove it and run again",
                            content->name, content->account.block, block));
  }
  content->account.run = std::move(run);
  return ShardFile(std::move(content));
}

BlockShard ShardStore::read(std::int64_t block) const {
  const ShardFile file = open(block);
  BlockShard shard = file.account();
  for (std::size_t i = 0; i < shard.linears.size(); ++i) {
    shard.linears[i] = file.read(i);
  }
  return shard;
}

void ShardStore::remove_stale_temporaries() const {
  for (const auto& folder : {folder_, folder_ / "shards"}) {
    std::error_code code;
    if (!fs::exists(folder, code)) {
      continue;
    }
    std::vector<fs::path> stale;
    for (auto entry = fs::directory_iterator(folder, code); !code && entry != fs::directory_iterator();
         entry.increment(code)) {
      const std::string name = entry->path().filename().string();
      const bool ours = name.starts_with("block_") || name.starts_with("manifest.json") ||
                        name.starts_with("run.json") || name.starts_with("report.json") || name.starts_with("lock.");
      if (ours && name.ends_with(".tmp")) {
        stale.push_back(entry->path());
      }
    }
    if (code) {
      throw Error(ErrorKind::io, fmt::format("cannot list {}: {}", folder.string(), code.message()));
    }
    for (const auto& path : stale) {
      remove_file(path);
    }
  }
}

void ShardStore::write_manifest(std::int64_t num_blocks, const nlohmann::json& fingerprint) const {
  nlohmann::json shards = nlohmann::json::array();
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::error_code code;
    const auto bytes = fs::file_size(shard_path(block), code);
    const auto sidecar = code ? std::nullopt : file(block).find_sidecar();
    if (sidecar && sidecar->bytes == static_cast<std::int64_t>(bytes)) {
      shards.push_back({{"block", block},
                        {"file", fmt::format("shards/{}", shard_path(block).filename().string())},
                        {"bytes", bytes},
                        {"xxh3_128", sidecar->xxh3_128}});
    }
  }
  const nlohmann::json manifest{
      {"format_version", format_version}, {"num_blocks", num_blocks}, {"fingerprint", fingerprint}, {"shards", shards}};
  write_file_atomically(folder_ / "manifest.json", manifest.dump(2) + "\n");
}

std::optional<nlohmann::json> ShardStore::read_manifest() const {
  const fs::path path = folder_ / "manifest.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    return std::nullopt;
  }
  return read_json(path);
}

}  // namespace gptqd::io
