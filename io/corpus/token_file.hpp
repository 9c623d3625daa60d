#pragma once
/// @file Token ids that another tool made: safetensors and numpy's .npy.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/corpus.hpp"

namespace gptqd::io {

/// Whether `path` names a token file (ends in .safetensors or .npy) and not a text.
bool is_token_file(const std::filesystem::path& path);

/// Reads `input_ids`, I32 or I64 [samples, seqlen], of a safetensors file; or the array of an .npy file, int32, int64,
/// uint16 or uint32 [samples, seqlen], little-endian, in C order.
/// @throws Error (input) for other types and shapes, a file whose length is not what its header says, and ids below 0
///         or above 2^31 - 1; (io)
TokenWindows read_token_file(const std::filesystem::path& path);

/// The header of an .npy file (numpy.lib.format 1.0 to 3.0).
struct NpyHeader {
  std::string descr;                ///< "<i4"
  bool fortran_order = false;       ///< columns first
  std::vector<std::int64_t> shape;  ///< extents, none negative
  std::int64_t data_offset = 0;     ///< of the first element in the file

  friend bool operator==(const NpyHeader&, const NpyHeader&) = default;
};

/// Longest header that is read: a plain array's has 118 bytes.
inline constexpr std::int64_t max_npy_header_bytes = 65536;

/// Parses the header from a file's first bytes: all of them, or max_npy_header_bytes and more.
/// @throws Error (input) naming what is wrong
NpyHeader parse_npy_header(std::string_view start_of_file, std::string_view name);

}  // namespace gptqd::io
