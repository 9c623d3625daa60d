#pragma once
/// @file What lies where in a zip archive whose entries are stored, not compressed.
///
/// Read by our own code (PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5): the minizip of Debian 12 does not see the
/// 64-bit sizes and places of zip64 entries, and files above 4 GiB are what this is for.
#include <cstdint>
#include <string>
#include <vector>

#include "io/atomic_file.hpp"

namespace gptqd::io {

/// Most entries of an archive that are accepted.
inline constexpr std::int64_t max_zip_entries = 1 << 20;

/// One entry; its bytes lie in the file as they are.
struct ZipEntry {
  std::string name;
  std::int64_t offset = 0;  ///< of its first byte in the file
  std::int64_t bytes = 0;
  std::uint32_t crc32 = 0;
};

/// The entries of a zip file (zip64 too) in the order of its directory.
/// @throws Error (input) for what is no zip file or a damaged one, entries that are compressed or encrypted or reach
///         outside the file, names that occur twice or are too long, and more than max_zip_entries of them;
///         (io) when reading fails
std::vector<ZipEntry> read_zip_entries(const File& file);

}  // namespace gptqd::io
