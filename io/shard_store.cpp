#include "io/shard_store.hpp"

#include <fmt/format.h>
#include <hdf5.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <system_error>
#include <tuple>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/json_file.hpp"
#include "version.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t format_version = 1;
// An attribute lives in an object header message, which the library limits to 64 KiB.
constexpr std::size_t max_attribute_bytes = 64'000;
constexpr std::size_t hashed_together = std::size_t{1} << 20;

/// libhdf5 is not thread-safe: everything that calls it holds this lock.
std::mutex hdf5_mutex;

/// A call of libhdf5 that failed; to_image and from_image turn it into an Error of the kind that fits.
class Hdf5Failure : public std::runtime_error {
 public:
  explicit Hdf5Failure(const char* call) : std::runtime_error(fmt::format("HDF5: {} failed", call)) {}
};

void check(herr_t status, const char* call) {
  if (status < 0) {
    throw Hdf5Failure(call);
  }
}

/// Owner of an HDF5 identifier.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close close, const char* call) : id_(id), close_(close) {
    if (id < 0) {
      throw Hdf5Failure(call);
    }
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) {
      close_(id_);
    }
  }
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor): identifiers go into C calls

 private:
  hid_t id_;
  Close close_;
};

/// Keeps libhdf5 from printing its error stack while we turn failures into exceptions.
class SilentErrors {
 public:
  SilentErrors() {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  SilentErrors(const SilentErrors&) = delete;
  SilentErrors& operator=(const SilentErrors&) = delete;
  ~SilentErrors() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

/// IEEE binary16, which HDF5 1.10 has no name for: sign at bit 15, 5 bits of exponent from 10, 10 of mantissa from 0.
Handle float16_type() {
  Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose, "H5Tcopy");
  check(H5Tset_fields(type, 15, 10, 5, 0, 10), "H5Tset_fields");
  check(H5Tset_size(type, 2), "H5Tset_size");
  check(H5Tset_ebias(type, 15), "H5Tset_ebias");
  return type;
}

Handle standard_type(hid_t type) { return Handle(H5Tcopy(type), H5Tclose, "H5Tcopy"); }

Handle type_of(const std::uint32_t*) { return standard_type(H5T_STD_U32LE); }
Handle type_of(const std::int32_t*) { return standard_type(H5T_STD_I32LE); }
Handle type_of(const std::uint8_t*) { return standard_type(H5T_STD_U8LE); }
Handle type_of(const Half*) { return float16_type(); }

Handle string_type(std::size_t bytes) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy");
  check(H5Tset_size(type, std::max<std::size_t>(bytes, 1)), "H5Tset_size");
  check(H5Tset_strpad(type, H5T_STR_NULLPAD), "H5Tset_strpad");
  check(H5Tset_cset(type, H5T_CSET_UTF8), "H5Tset_cset");
  return type;
}

using Extents = std::vector<hsize_t>;

void write_attribute(hid_t object, const char* name, std::int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "H5Screate");
  const Handle attribute(H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "H5Acreate");
  check(H5Awrite(attribute, H5T_NATIVE_INT64, &value), "H5Awrite");
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  require(value.size() <= max_attribute_bytes,
          fmt::format("shard: attribute {} has {} bytes, more than the {} that HDF5 holds", name, value.size(),
                      max_attribute_bytes));
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "H5Screate");
  const Handle type = string_type(value.size());
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, "H5Acreate");
  const char* text = value.empty() ? "\0" : value.data();
  check(H5Awrite(attribute, type, text), "H5Awrite");
}

template <class T>
void write_dataset(hid_t group, const char* name, const std::vector<T>& data, const Extents& extents) {
  const Handle space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose,
                     "H5Screate_simple");
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
  check(H5Pset_layout(properties, H5D_CONTIGUOUS), "H5Pset_layout");
  check(H5Pset_obj_track_times(properties, false), "H5Pset_obj_track_times");
  check(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER), "H5Pset_fill_time");
  const Handle type = type_of(data.data());
  const Handle dataset(H5Dcreate2(group, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT), H5Dclose,
                       "H5Dcreate");
  check(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data()), "H5Dwrite");
}

Extents matrix(std::int64_t rows, std::int64_t cols) {
  return {static_cast<hsize_t>(rows), static_cast<hsize_t>(cols)};
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

/// Elements within a shard's image.
struct Range {
  std::size_t offset = 0;  ///< bytes
  std::size_t count = 0;
};

/// Reads attributes of one object and finds its datasets; messages name the object.
class ObjectReader {
 public:
  ObjectReader(hid_t object, std::string where) : object_(object), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& offence) const {
    throw Error(ErrorKind::input, fmt::format("{}: {}", where_, offence));
  }

  std::int64_t integer(const char* name) const {
    const Handle attribute = open_attribute(name);
    const Handle type(H5Aget_type(attribute), H5Tclose, "H5Aget_type");
    const Handle space(H5Aget_space(attribute), H5Sclose, "H5Aget_space");
    if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1) {
      fail(fmt::format("attribute {} is no integer", name));
    }
    std::int64_t value = 0;
    check(H5Aread(attribute, H5T_NATIVE_INT64, &value), "H5Aread");
    return value;
  }

  std::string text(const char* name) const {
    const Handle attribute = open_attribute(name);
    const Handle type(H5Aget_type(attribute), H5Tclose, "H5Aget_type");
    const Handle space(H5Aget_space(attribute), H5Sclose, "H5Aget_space");
    const std::size_t bytes = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || H5Sget_simple_extent_npoints(space) != 1 ||
        bytes > max_attribute_bytes) {
      fail(fmt::format("attribute {} is no text of fixed length", name));
    }
    std::string value(bytes, '\0');
    check(H5Aread(attribute, type, value.data()), "H5Aread");
    value.resize(value.find_last_not_of('\0') + 1);
    return value;
  }

  nlohmann::json json(const char* name) const {
    return parse_json(text(name), fmt::format("{}: attribute {}", where_, name));
  }

  /// Where the elements of a contiguous dataset lie in the file.
  template <class T>
  Range dataset(const char* name, const Extents& extents) const {
    if (H5Lexists(object_, name, H5P_DEFAULT) <= 0) {
      fail(fmt::format("dataset {} is missing", name));
    }
    const Handle dataset(H5Dopen2(object_, name, H5P_DEFAULT), H5Dclose, "H5Dopen");
    const Handle expected = type_of(static_cast<const T*>(nullptr));
    const Handle type(H5Dget_type(dataset), H5Tclose, "H5Dget_type");
    if (H5Tequal(type, expected) <= 0) {
      fail(fmt::format("dataset {} has another element type than expected", name));
    }
    const Handle space(H5Dget_space(dataset), H5Sclose, "H5Dget_space");
    const int rank = H5Sget_simple_extent_ndims(space);
    Extents got(static_cast<std::size_t>(std::max(rank, 0)));
    if (rank > 0) {
      check(H5Sget_simple_extent_dims(space, got.data(), nullptr), "H5Sget_simple_extent_dims");
    }
    if (got != extents) {
      fail(fmt::format("dataset {} has the shape [{}], expected [{}]", name, fmt::join(got, ", "),
                       fmt::join(extents, ", ")));
    }
    hsize_t count = 1;
    for (const auto extent : extents) {
      count *= extent;
    }
    // Storage that is smaller than the shape says would come back as fill values.
    if (H5Dget_storage_size(dataset) != count * sizeof(T)) {
      fail(
          fmt::format("dataset {} holds {} bytes, expected {}", name, H5Dget_storage_size(dataset), count * sizeof(T)));
    }
    const Handle properties(H5Dget_create_plist(dataset), H5Pclose, "H5Dget_create_plist");
    const haddr_t offset = H5Dget_offset(dataset);
    if (H5Pget_layout(properties) != H5D_CONTIGUOUS || offset == HADDR_UNDEF) {
      fail(fmt::format("dataset {} is not contiguous", name));
    }
    return {.offset = static_cast<std::size_t>(offset), .count = static_cast<std::size_t>(count)};
  }

 private:
  Handle open_attribute(const char* name) const {
    if (H5Aexists(object_, name) <= 0) {
      fail(fmt::format("attribute {} is missing", name));
    }
    return Handle(H5Aopen(object_, name, H5P_DEFAULT), H5Aclose, "H5Aopen");
  }

  hid_t object_;
  std::string where_;
};

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
  Range qweight;
  Range scales;
  Range zeros;
  Range g_idx;
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
  stored.qweight = reader.dataset<std::uint32_t>("qweight", matrix(linear.cols * linear.bits / 32, linear.rows));
  stored.scales = reader.dataset<Half>("scales", matrix(linear.groups(), linear.rows));
  stored.zeros = reader.dataset<std::uint8_t>("zeros", matrix(linear.groups(), linear.rows));
  stored.g_idx = reader.dataset<std::int32_t>("g_idx", {static_cast<hsize_t>(linear.cols)});
  stored.index = reader.integer("index");
  return stored;
}

template <class T>
std::vector<T> elements(std::span<const std::byte> image, const Range& range, const std::string& where) {
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

std::vector<std::byte> build_image(const BlockShard& shard) {
  std::size_t bytes = std::size_t{1} << 20;
  for (const auto& linear : shard.linears) {
    bytes += data_bytes(linear) + 4096;
  }
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  // The increment is about the size of the file, so that it grows once; no backing store: nothing is written to disk.
  check(H5Pset_fapl_core(access, bytes, false), "H5Pset_fapl_core");
  const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "H5Pcreate");
  check(H5Pset_obj_track_times(creation, false), "H5Pset_obj_track_times");
  // The library first tries to open a file of that name: this one can never exist.
  const Handle file(H5Fcreate("/dev/null/shard", H5F_ACC_TRUNC, creation, access), H5Fclose, "H5Fcreate");
  write_attribute(file, "format_version", format_version);
  write_attribute(file, "tool_version", fmt::format("gptq-dist {}", version));
  write_attribute(file, "fingerprint", shard.fingerprint);
  write_attribute(file, "block", shard.block);
  write_attribute(file, "spec", shard.spec.dump());
  std::int64_t index = 0;
  for (const auto& linear : shard.linears) {
    write_linear(file, linear, index++);
  }
  check(H5Fflush(file, H5F_SCOPE_GLOBAL), "H5Fflush");
  const auto size = H5Fget_file_image(file, nullptr, 0);
  check(size > 0 ? 0 : -1, "H5Fget_file_image");
  std::vector<std::byte> image(static_cast<std::size_t>(size));
  check(H5Fget_file_image(file, image.data(), image.size()) == size ? 0 : -1, "H5Fget_file_image");
  return image;
}

/// libhdf5 copies a file image wherever it passes it on, unless these say that a copy is the image itself. It is open
/// for reading only, so nothing changes it.
/// (H5LTopen_file_image without copying leaks memory at each call in 1.10.)
void* same_image(std::size_t, H5FD_file_image_op_t, void* image) { return image; }
void* no_copy(void* target, const void*, std::size_t, H5FD_file_image_op_t, void*) { return target; }
void* no_growth(void*, std::size_t, H5FD_file_image_op_t, void*) { return nullptr; }
herr_t not_freed(void*, H5FD_file_image_op_t, void*) { return 0; }
void* same_data(void* data) { return data; }
herr_t data_not_freed(void*) { return 0; }

Handle open_image(std::span<const std::byte> image) {
  void* const bytes = const_cast<std::byte*>(image.data());
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  check(H5Pset_fapl_core(access, image.size(), false), "H5Pset_fapl_core");
  H5FD_file_image_callbacks_t callbacks{same_image, no_copy, no_growth, not_freed, same_data, data_not_freed, bytes};
  check(H5Pset_file_image_callbacks(access, &callbacks), "H5Pset_file_image_callbacks");
  check(H5Pset_file_image(access, bytes, image.size()), "H5Pset_file_image");
  return Handle(H5Fopen("/dev/null/shard", H5F_ACC_RDONLY, access), H5Fclose, "H5Fopen");
}

/// What the image says of its block, the linears without their arrays; and where those lie.
std::pair<BlockShard, std::vector<StoredLinear>> parse_image(std::span<const std::byte> image,
                                                             const std::string& name) {
  const Handle file = open_image(image);
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

/// The same behind the library's lock, its failures as Errors.
std::pair<BlockShard, std::vector<StoredLinear>> parse_safely(std::span<const std::byte> image,
                                                              const std::string& name) {
  const std::scoped_lock lock(hdf5_mutex);
  const SilentErrors silent;
  try {
    return parse_image(image, name);
  } catch (const Hdf5Failure& failure) {
    throw Error(ErrorKind::input, fmt::format("{}: {}; it is no shard of this program", name, failure.what()));
  }
}

void remove_if_there(const fs::path& path) {
  std::error_code code;
  fs::remove(path, code);
  if (code) {
    throw Error(ErrorKind::io,
                fmt::format("cannot remove {}: {}; check the folder's permissions", path.string(), code.message()));
  }
}

}  // namespace

std::vector<std::byte> to_image(const BlockShard& shard) {
  check_linears(shard);
  const std::scoped_lock lock(hdf5_mutex);
  const SilentErrors silent;
  try {
    return build_image(shard);
  } catch (const Hdf5Failure& failure) {
    throw Error(ErrorKind::internal, fmt::format("storing block {}: {}", shard.block, failure.what()));
  }
}

BlockShard from_image(std::span<const std::byte> image, const std::string& name) {
  auto [shard, linears] = parse_safely(image, name);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    shard.linears[i] = take_linear(image, linears[i], name);
  }
  return std::move(shard);
}

namespace {

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using LargeMemory = std::unique_ptr<std::byte[], FreeMemory>;

/// Memory for a file that is read whole, in huge pages where there are any: with small ones a tenth of a merge's time
/// went into making them.
LargeMemory large_memory(std::size_t bytes) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  const std::size_t rounded = (bytes + huge_page - 1) / huge_page * huge_page;
  LargeMemory memory(static_cast<std::byte*>(std::aligned_alloc(huge_page, std::max(rounded, huge_page))));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  ::madvise(memory.get(), rounded, MADV_HUGEPAGE);  // a hint
  return memory;
}

}  // namespace

struct ShardFile::Content {
  std::string name;
  LargeMemory bytes;
  std::size_t size = 0;
  BlockShard account;
  std::vector<StoredLinear> linears;
};

ShardFile::ShardFile(std::unique_ptr<Content> content) : content_(std::move(content)) {}
ShardFile::ShardFile(ShardFile&&) noexcept = default;
ShardFile& ShardFile::operator=(ShardFile&&) noexcept = default;
ShardFile::~ShardFile() = default;

const BlockShard& ShardFile::account() const { return content_->account; }

PackedLinear ShardFile::read(std::size_t index) const {
  return take_linear({content_->bytes.get(), content_->size}, content_->linears.at(index), content_->name);
}

ShardStore::ShardStore(fs::path work_folder) : folder_(std::move(work_folder)) {
  std::error_code code;
  fs::create_directories(folder_ / "shards", code);
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot create {}: {}; choose another work folder or check its permissions",
                                           (folder_ / "shards").string(), code.message()));
  }
}

fs::path ShardStore::shard_path(std::int64_t block) const {
  return folder_ / "shards" / fmt::format("block_{:05}.h5", block);
}

fs::path ShardStore::sidecar_path(std::int64_t block) const {
  return folder_ / "shards" / fmt::format("block_{:05}.json", block);
}

void ShardStore::write(const BlockShard& shard) const {
  with_context(fmt::format("writing {}", shard_path(shard.block).string()), [&] {
    const auto image = to_image(shard);
    const nlohmann::json sidecar{{"xxh3_128", xxh3_128_hex(image)}, {"bytes", image.size()}, {"run", shard.run}};
    // Old sidecar away, new shard, new sidecar: between any two of these the block counts as absent.
    remove_if_there(sidecar_path(shard.block));
    write_file_atomically(shard_path(shard.block), image);
    write_file_atomically(sidecar_path(shard.block), sidecar.dump(2) + "\n");
  });
}

namespace {

struct Sidecar {
  std::string xxh3_128;
  std::int64_t bytes = 0;
  nlohmann::json run;
};

Sidecar read_sidecar(const fs::path& path) {
  const auto json = read_json(path);
  const std::string where = path.string();
  return {.xxh3_128 = get<std::string>(json, "xxh3_128", where),
          .bytes = get<std::int64_t>(json, "bytes", where),
          .run = get_or<nlohmann::json>(json, "run", {}, where)};
}

/// The sidecar, or why there is no valid one.
std::pair<std::optional<Sidecar>, std::string> try_sidecar(const fs::path& path) {
  try {
    return {read_sidecar(path), {}};
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::input) {
      throw;
    }
    return {std::nullopt, fmt::format("no valid sidecar: {}", error.message())};
  }
}

std::string checksum_of(const File& file) {
  Hasher hasher;
  std::vector<std::byte> chunk(std::size_t{8} << 20);
  for (std::int64_t offset = 0; offset < file.size();) {
    const auto bytes = std::min<std::int64_t>(std::ssize(chunk), file.size() - offset);
    const auto part = std::span(chunk).first(static_cast<std::size_t>(bytes));
    file.read_exactly(offset, part);
    hasher.update(part);
    offset += bytes;
  }
  return hasher.hex();
}

}  // namespace

ShardState ShardStore::state(std::int64_t block) const {
  ShardState state = length_state(block);
  if (!state.reason.empty()) {
    return state;
  }
  const std::string checksum = checksum_of(File(shard_path(block)));
  if (checksum != state.xxh3_128) {
    return {.status = ShardStatus::damaged,
            .reason = fmt::format("checksum {}, expected {}", checksum, state.xxh3_128),
            .bytes = state.bytes,
            .xxh3_128 = {}};
  }
  return state;
}

std::string ShardStore::obstacle(std::int64_t block) const { return length_state(block).reason; }

ShardState ShardStore::length_state(std::int64_t block) const {
  std::error_code ignored;
  if (!fs::exists(shard_path(block), ignored)) {
    return {.status = ShardStatus::missing, .reason = "no file", .bytes = 0, .xxh3_128 = {}};
  }
  const auto [sidecar, offence] = try_sidecar(sidecar_path(block));
  if (!sidecar) {
    return {.status = ShardStatus::missing, .reason = offence, .bytes = 0, .xxh3_128 = {}};
  }
  const File file(shard_path(block));
  if (file.size() != sidecar->bytes) {
    return {.status = ShardStatus::damaged,
            .reason = fmt::format("{} bytes, expected {}", file.size(), sidecar->bytes),
            .bytes = file.size(),
            .xxh3_128 = {}};
  }
  return {.status = ShardStatus::valid, .reason = {}, .bytes = file.size(), .xxh3_128 = sidecar->xxh3_128};
}

ShardFile ShardStore::open(std::int64_t block) const {
  auto content = std::make_unique<ShardFile::Content>();
  content->name = shard_path(block).string();
  const Sidecar sidecar = read_sidecar(sidecar_path(block));
  const File file(shard_path(block));
  const auto damaged = [&](const std::string& checksum) {
    throw Error(ErrorKind::input, fmt::format("{}: {} bytes{}, expected {} with the checksum {}; the shard is damaged: "
                                              "remove it and run again",
                                              content->name, file.size(), checksum, sidecar.bytes, sidecar.xxh3_128));
  };
  if (file.size() != sidecar.bytes) {
    damaged("");
  }
  content->size = static_cast<std::size_t>(file.size());
  content->bytes = large_memory(content->size);
  const std::span image(content->bytes.get(), content->size);
  Hasher hasher;
  for (std::size_t offset = 0; offset < image.size(); offset += hashed_together) {  // while it is in the cache
    const auto part = image.subspan(offset, std::min(hashed_together, image.size() - offset));
    file.read_exactly(static_cast<std::int64_t>(offset), part);
    hasher.update(part);
  }
  if (const auto checksum = hasher.hex(); checksum != sidecar.xxh3_128) {
    damaged(fmt::format(" with the checksum {}", checksum));
  }
  std::tie(content->account, content->linears) = parse_safely(image, content->name);
  if (content->account.block != block) {
    throw Error(ErrorKind::input,
                fmt::format("{}: holds block {}, expected {}; the file was renamed: remove it and run again",
                            content->name, content->account.block, block));
  }
  content->account.run = sidecar.run;
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
    std::vector<fs::path> stale;
    for (auto entry = fs::directory_iterator(folder, code); !code && entry != fs::directory_iterator();
         entry.increment(code)) {
      const std::string name = entry->path().filename().string();
      const bool ours = name.starts_with("block_") || name.starts_with("manifest.json");
      if (ours && name.ends_with(".tmp")) {
        stale.push_back(entry->path());
      }
    }
    if (code) {
      throw Error(ErrorKind::io, fmt::format("cannot list {}: {}", folder.string(), code.message()));
    }
    for (const auto& path : stale) {
      remove_if_there(path);
    }
  }
}

void ShardStore::write_manifest(std::int64_t num_blocks, const nlohmann::json& fingerprint) const {
  nlohmann::json shards = nlohmann::json::array();
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::error_code code;
    const auto bytes = fs::file_size(shard_path(block), code);
    const auto sidecar = code ? std::nullopt : try_sidecar(sidecar_path(block)).first;
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
