#pragma once
/// @file The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes without holes.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/checksum.hpp"

namespace gptqd::io {

/// Largest header that is read, as in the reference implementation.
inline constexpr std::int64_t max_safetensors_header_bytes = 100'000'000;

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              ///< by place in the file; offsets count from the start of the data
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
};

/// Parses and checks the JSON header of a file with `data_bytes` bytes of data behind it.
///
/// The tensors must cover the data exactly: the format allows neither holes nor overlaps.
/// @throws Error (input) naming file, tensor, got and expected
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> header_json, std::int64_t data_bytes,
                                           std::string_view file_name);

/// The header's length from the file's first 8 bytes. @throws Error (input) unless it fits the file and the limit
std::int64_t safetensors_header_bytes(std::span<const std::byte, 8> prefix, std::int64_t file_bytes,
                                      std::string_view file_name);

/// Parses the header of a whole file in memory. @throws Error (input)
SafetensorsHeader parse_safetensors_image(std::span<const std::byte> file, std::string_view file_name);

/// One safetensors file open for reading. Thread-safe; tensors' offsets count from the start of the file.
class SafetensorsFile {
 public:
  /// Opens the file and checks the whole header. @throws Error (input, io)
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  std::int64_t bytes() const { return file_.size(); }
  /// In the order of their place in the file.
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  /// XXH3-128 of the header's bytes.
  const std::string& header_hash() const { return header_hash_; }

  /// The tensor of that name, or null.
  const TensorInfo* find(std::string_view name) const;
  /// @throws Error (input) with the closest names when there is none
  const TensorInfo& at(std::string_view name) const;
  /// @pre out.size() == info.bytes
  void read(const TensorInfo& info, std::span<std::byte> out) const;
  /// `out.size()` bytes from `offset` within the tensor. @pre they lie inside the tensor
  void read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const;

 private:
  File file_;
  SafetensorsHeader header_;
  std::string header_hash_;
  std::unordered_map<std::string_view, const TensorInfo*> by_name_;
};

/// What a tensor will be, before its data is there.
struct TensorDeclaration {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;

  /// @throws Error (internal) when the product overflows or an extent is negative
  std::int64_t bytes() const;
};

/// Writes one safetensors file in a stream, through AtomicFile. The bytes depend on the declarations and data alone.
class SafetensorsWriter {
 public:
  /// Writes the header: tensors in the declared order, their data contiguous, padded with blanks to 8 bytes.
  /// @throws Error (internal) for duplicated names; (io)
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorDeclaration> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  /// The next bytes of tensor `name`; a tensor may come in several pieces, tensors come in the declared order.
  /// @throws Error (internal) for another tensor than the one that is due, and for more bytes than it has; (io)
  void append(std::string_view name, std::span<const std::byte> data);
  /// Makes the file appear. @throws Error (internal) when bytes are missing; (io)
  void commit();
  /// Bytes of the whole file so far.
  std::int64_t bytes() const { return file_.bytes(); }
  /// XXH3-128 of the whole file so far.
  std::string checksum() const { return hasher_.hex(); }

 private:
  void skip_complete();

  std::vector<TensorDeclaration> tensors_;
  AtomicFile file_;
  Hasher hasher_;
  std::size_t current_ = 0;
  std::int64_t missing_bytes_ = 0;  // of tensors_[current_]
};

}  // namespace gptqd::io
