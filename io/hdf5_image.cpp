#include "io/hdf5_image.hpp"

#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <mutex>

namespace gptqd::io::hdf5 {

namespace {

/// libhdf5 is not thread-safe: everything that calls it holds this lock.
std::mutex hdf5_mutex;

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

Handle string_type(std::size_t bytes) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "H5Tcopy");
  check(H5Tset_size(type, std::max<std::size_t>(bytes, 1)), "H5Tset_size");
  check(H5Tset_strpad(type, H5T_STR_NULLPAD), "H5Tset_strpad");
  check(H5Tset_cset(type, H5T_CSET_UTF8), "H5Tset_cset");
  return type;
}

// libhdf5 copies a file image wherever it passes it on, unless these say that a copy is the image itself. It is open
// for reading only, so nothing changes it. (H5LTopen_file_image without copying leaks memory at each call in 1.10.)
void* same_image(std::size_t, H5FD_file_image_op_t, void* image) { return image; }
void* no_copy(void* target, const void*, std::size_t, H5FD_file_image_op_t, void*) { return target; }
void* no_growth(void*, std::size_t, H5FD_file_image_op_t, void*) { return nullptr; }
herr_t not_freed(void*, H5FD_file_image_op_t, void*) { return 0; }
void* same_data(void* data) { return data; }
herr_t data_not_freed(void*) { return 0; }

// A file that is being made grows in huge pages: made of small ones its memory takes longer than its content.
void* allocate(std::size_t bytes, H5FD_file_image_op_t, void*) {
  return LargeMemory::allocate(bytes);
}
void* copy(void* target, const void* source, std::size_t bytes, H5FD_file_image_op_t, void*) {
  return std::memcpy(target, source, bytes);
}
void* resize(void* old, std::size_t bytes, H5FD_file_image_op_t, void*) {
  void* const memory = LargeMemory::allocate(bytes);
  if (memory != nullptr && old != nullptr) {
    std::memcpy(memory, old, std::min(bytes, ::malloc_usable_size(old)));
    std::free(old);
  }
  return memory;
}
herr_t release(void* memory, H5FD_file_image_op_t, void*) {
  std::free(memory);
  return 0;
}

Handle open_image(std::span<const std::byte> image) {
  void* const bytes = const_cast<std::byte*>(image.data());
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  check(H5Pset_fapl_core(access, image.size(), false), "H5Pset_fapl_core");
  H5FD_file_image_callbacks_t callbacks{same_image, no_copy, no_growth, not_freed, same_data, data_not_freed, bytes};
  check(H5Pset_file_image_callbacks(access, &callbacks), "H5Pset_file_image_callbacks");
  check(H5Pset_file_image(access, bytes, image.size()), "H5Pset_file_image");
  return Handle(H5Fopen("/dev/null/image", H5F_ACC_RDONLY, access), H5Fclose, "H5Fopen");
}

}  // namespace

Handle type_of(const std::uint32_t*) { return standard_type(H5T_STD_U32LE); }
Handle type_of(const std::uint16_t*) { return standard_type(H5T_STD_U16LE); }
Handle type_of(const std::int32_t*) { return standard_type(H5T_STD_I32LE); }
Handle type_of(const std::uint8_t*) { return standard_type(H5T_STD_U8LE); }
Handle type_of(const Half*) { return float16_type(); }

void write_attribute(hid_t object, const char* name, std::int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "H5Screate");
  const Handle attribute(H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "H5Acreate");
  check(H5Awrite(attribute, H5T_NATIVE_INT64, &value), "H5Awrite");
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  require(value.size() <= max_attribute_bytes,
          fmt::format("HDF5: attribute {} has {} bytes, more than the {} that HDF5 holds", name, value.size(),
                      max_attribute_bytes));
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "H5Screate");
  const Handle type = string_type(value.size());
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, "H5Acreate");
  const char* text = value.empty() ? "\0" : value.data();
  check(H5Awrite(attribute, type, text), "H5Awrite");
}

LargeMemory make_image(std::size_t expected_bytes, const std::string& doing,
                                  const std::function<void(hid_t file)>& fill) {
  const std::scoped_lock lock(hdf5_mutex);
  const SilentErrors silent;
  try {
    const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
    // The increment is about the size of the file, so that it grows once; no backing store: nothing is written to disk.
    check(H5Pset_fapl_core(access, expected_bytes, false), "H5Pset_fapl_core");
    H5FD_file_image_callbacks_t callbacks{allocate, copy, resize, release, nullptr, nullptr, nullptr};
    check(H5Pset_file_image_callbacks(access, &callbacks), "H5Pset_file_image_callbacks");
    const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "H5Pcreate");
    check(H5Pset_obj_track_times(creation, false), "H5Pset_obj_track_times");
    // The library first tries to open a file of that name: this one can never exist.
    const Handle file(H5Fcreate("/dev/null/image", H5F_ACC_TRUNC, creation, access), H5Fclose, "H5Fcreate");
    fill(file);
    check(H5Fflush(file, H5F_SCOPE_GLOBAL), "H5Fflush");
    const auto size = H5Fget_file_image(file, nullptr, 0);
    check(size > 0 ? 0 : -1, "H5Fget_file_image");
    LargeMemory image(static_cast<std::size_t>(size));
    check(H5Fget_file_image(file, image.bytes().data(), image.bytes().size()) == size ? 0 : -1, "H5Fget_file_image");
    return image;
  } catch (const Failure& failure) {
    throw Error(ErrorKind::internal, fmt::format("{}: {}", doing, failure.what()));
  }
}

void read_image(std::span<const std::byte> image, const std::string& name, const std::string& offence,
                const std::function<void(hid_t file)>& read) {
  const std::scoped_lock lock(hdf5_mutex);
  const SilentErrors silent;
  try {
    read(open_image(image));
  } catch (const Failure& failure) {
    throw Error(ErrorKind::input, fmt::format("{}: {}; {}", name, failure.what(), offence));
  }
}

}  // namespace gptqd::io::hdf5
