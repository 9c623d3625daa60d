#pragma once
/// @file HDF5 files built and read in memory. Internal to io: what the stores of shards and snapshots share.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "io/json_file.hpp"
#include "io/large_memory.hpp"
#include "kernels/base/dtype.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io::hdf5 {

// An attribute lives in an object header message, which the library limits to 64 KiB.
inline constexpr std::size_t max_attribute_bytes = 64'000;

/// A call of libhdf5 that failed; make_image and read_image turn it into an Error.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const char* call) : std::runtime_error(fmt::format("HDF5: {} failed", call)) {}
};

inline void check(herr_t status, const char* call) {
  if (status < 0) {
    throw Failure(call);
  }
}

/// Owner of an HDF5 identifier.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close close, const char* call) : id_(id), close_(close) {
    if (id < 0) {
      throw Failure(call);
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

Handle type_of(const std::uint32_t*);
Handle type_of(const std::uint16_t*);
Handle type_of(const std::int32_t*);
Handle type_of(const std::uint8_t*);
Handle type_of(const Half*);

using Extents = std::vector<hsize_t>;

inline Extents matrix(std::int64_t rows, std::int64_t cols) {
  return {static_cast<hsize_t>(rows), static_cast<hsize_t>(cols)};
}

void write_attribute(hid_t object, const char* name, std::int64_t value);
void write_attribute(hid_t object, const char* name, const std::string& value);

/// A contiguous dataset without times.
template <class T>
void write_dataset(hid_t group, const char* name, std::span<const T> data, const Extents& extents) {
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

/// Elements within a file's image.
struct Range {
  std::size_t offset = 0;  ///< bytes
  std::size_t count = 0;
};

/// Reads attributes and datasets of one object; messages name the object.
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

  template <class T>
  std::vector<T> dataset(const char* name, const Extents& extents) const {
    const Handle dataset = open_dataset<T>(name, extents);
    const Handle type = type_of(static_cast<const T*>(nullptr));
    std::vector<T> data(count_of(extents));
    check(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data.data()), "H5Dread");
    return data;
  }

  /// Where the elements of a contiguous dataset lie in the file.
  template <class T>
  Range range(const char* name, const Extents& extents) const {
    const Handle dataset = open_dataset<T>(name, extents);
    const Handle properties(H5Dget_create_plist(dataset), H5Pclose, "H5Dget_create_plist");
    const haddr_t offset = H5Dget_offset(dataset);
    if (H5Pget_layout(properties) != H5D_CONTIGUOUS || offset == HADDR_UNDEF) {
      fail(fmt::format("dataset {} is not contiguous", name));
    }
    return {.offset = static_cast<std::size_t>(offset), .count = count_of(extents)};
  }

 private:
  static std::size_t count_of(const Extents& extents) {
    std::size_t count = 1;
    for (const auto extent : extents) {
      count *= extent;
    }
    return count;
  }

  /// The dataset, its type and shape checked.
  template <class T>
  Handle open_dataset(const char* name, const Extents& extents) const {
    if (H5Lexists(object_, name, H5P_DEFAULT) <= 0) {
      fail(fmt::format("dataset {} is missing", name));
    }
    Handle dataset(H5Dopen2(object_, name, H5P_DEFAULT), H5Dclose, "H5Dopen");
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
    const std::size_t count = count_of(extents);
    // Storage that is smaller than the shape says would come back as fill values.
    if (H5Dget_storage_size(dataset) != count * sizeof(T)) {
      fail(
          fmt::format("dataset {} holds {} bytes, expected {}", name, H5Dget_storage_size(dataset), count * sizeof(T)));
    }
    return dataset;
  }

  Handle open_attribute(const char* name) const {
    if (H5Aexists(object_, name) <= 0) {
      fail(fmt::format("attribute {} is missing", name));
    }
    return Handle(H5Aopen(object_, name, H5P_DEFAULT), H5Aclose, "H5Aopen");
  }

  hid_t object_;
  std::string where_;
};

/// The bytes of a file that `fill` writes into: they depend on the content alone. Thread-safe.
/// @param expected_bytes  about the size of the file
/// @param doing           opens messages: "storing block 3"
/// @throws Error (internal)
LargeMemory make_image(std::size_t expected_bytes, const std::string& doing,
                                  const std::function<void(hid_t file)>& fill);

/// Hands the file in `image` to `read`. Thread-safe.
/// @pre the image is undamaged: a checksum has been compared; damaged ones crash the library
/// @throws Error (input) "NAME: HDF5: ... failed; OFFENCE"
void read_image(std::span<const std::byte> image, const std::string& name, const std::string& offence,
                const std::function<void(hid_t file)>& read);

}  // namespace gptqd::io::hdf5
