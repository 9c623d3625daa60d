#pragma once
/// @file The weights of a model folder, whatever files they lie in.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.hpp"

namespace gptqd::io {

/// One tensor of a checkpoint. Reading gives it row-major, dense and little-endian, however it lies in its file.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;   ///< that reading gives: those of all its elements
  int file_index = 0;       ///< into CheckpointReader::files()
  std::int64_t offset = 0;  ///< of the first element in that file, in bytes
  /// Distance of neighbours along each extent in the file, in elements; empty where the tensor lies there as it is
  /// read.
  std::vector<std::int64_t> strides = {};
};

/// Bytes of a dense tensor: shape[0] · shape[1] · ... · size_of(dtype), or nullopt when that exceeds 63 bits.
/// @pre no extent is negative
std::optional<std::int64_t> dense_bytes(const std::vector<std::int64_t>& shape, DType dtype);

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
  /// Opens the first of these that is there: `model.safetensors`, the files that `model.safetensors.index.json` names,
  /// `pytorch_model.bin`, the files that `pytorch_model.bin.index.json` names.
  /// @throws Error (input) for a missing folder, a folder without weights (says which names were looked for), an index
  ///         that names a file which is missing or outside the folder, a tensor that lies in two files or not in the
  ///         file the index names, and whatever SafetensorsFile or PytorchFile refuses
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
  /// `out.size()` bytes from `offset` within the tensor as read() gives it. @pre they lie inside the tensor
  virtual void read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const = 0;
  virtual std::vector<FileIdentity> files() const = 0;
  /// The folder the files lie in.
  virtual const std::filesystem::path& folder() const = 0;
};

/// Up to three of `names` in the order of their edit distance from `wanted`, for messages.
std::vector<std::string> closest_names(std::string_view wanted, const std::vector<std::string>& names);

}  // namespace gptqd::io
