#pragma once
/// @file GGUF, version 3: a header of typed keys and values, tensor infos, and the tensors' bytes, each aligned to 32.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"

namespace gptqd::io {

/// Types of tensors that we write, by ggml's numbers.
enum class GgmlType : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q5_0 = 6, q8_0 = 8, bf16 = 30 };

/// Elements of one block of a type along a row, and a block's bytes.
struct GgmlBlock {
  std::int64_t elements = 1;
  std::int64_t bytes = 0;
};
GgmlBlock block_of(GgmlType type);

using GgufValue = std::variant<std::uint32_t, float, bool, std::string, std::vector<std::string>,
                               std::vector<std::int32_t>, std::vector<float>>;

/// Keys and values in the order in which they are written.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<std::int64_t> shape;  ///< row-major, slowest first, as in safetensors; the file holds it reversed

  /// @pre rows are whole blocks
  std::int64_t bytes() const;
};

/// Writes one file in a stream, through AtomicFile. The bytes depend on the arguments alone.
class GgufWriter {
 public:
  /// Writes the header. @throws Error (internal) for duplicated names, rows that are no whole blocks; (io)
  GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata, std::vector<GgufTensor> tensors);

  /// The next bytes of tensor `index`; a tensor may come in several pieces, tensors come in the declared order.
  /// @throws Error (internal) for another tensor than the one that is due, and for more bytes than it has; (io)
  void append(std::size_t index, std::span<const std::byte> data);
  /// Makes the file appear. @throws Error (internal) when bytes are missing; (io)
  void commit();
  std::int64_t bytes() const { return file_.bytes(); }
  /// XXH3-128 of the whole file so far.
  std::string checksum() const { return hasher_.hex(); }

 private:
  void write(std::span<const std::byte> data);
  void pad();

  std::vector<GgufTensor> tensors_;
  AtomicFile file_;
  Hasher hasher_;
  std::size_t current_ = 0;
  std::int64_t missing_bytes_ = 0;  // of tensors_[current_]
};

}  // namespace gptqd::io
