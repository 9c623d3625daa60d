#pragma once
/// @file The weights of a model folder, whatever files they lie in.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.hpp"

namespace gptqd::io {

/// One tensor of a checkpoint: row-major, dense, little-endian.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;
  int file_index = 0;       ///< into CheckpointReader::files()
  std::int64_t offset = 0;  ///< of the first byte in that file
};

/// What a file of weights is recognised by in a run's fingerprint.
struct FileIdentity {
  std::string name;  ///< relative to the model folder
  std::int64_t bytes = 0;
  std::string header_hash;  ///< XXH3-128 of the header: names, types, shapes, places

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

/// Reads the tensors of a model folder. All reading is thread-safe.
class CheckpointReader {
 public:
  /// Opens `model.safetensors`, or else the files that `model.safetensors.index.json` names.
  /// @throws Error (input) for a missing folder, a folder without weights (says which names were looked for), an index
  ///         that names a file which is missing or outside the folder, a tensor that lies in two files or not in the
  ///         file the index names, and whatever SafetensorsFile refuses
  static std::unique_ptr<CheckpointReader> open(const std::filesystem::path& folder);

  virtual ~CheckpointReader() = default;

  /// The tensor of that name, or null.
  virtual const TensorInfo* find(std::string_view name) const = 0;
  /// @throws Error (input) with the closest names when there is none
  const TensorInfo& at(std::string_view name) const;
  /// All names in file order: by file, then by place in the file.
  virtual std::vector<std::string> names() const = 0;
  /// The whole tensor into `out`. @pre out.size() == info.bytes
  void read(const TensorInfo& info, std::span<std::byte> out) const;
  /// `out.size()` bytes from `offset` within the tensor. @pre they lie inside the tensor
  virtual void read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const = 0;
  virtual std::vector<FileIdentity> files() const = 0;
  /// The folder the files lie in.
  virtual const std::filesystem::path& folder() const = 0;
};

/// Up to three of `names` in the order of their edit distance from `wanted`, for messages.
std::vector<std::string> closest_names(std::string_view wanted, const std::vector<std::string>& names);

}  // namespace gptqd::io
