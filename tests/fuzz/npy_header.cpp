/// @file Fuzzes the reader of .npy headers: any bytes give a header or an input error, nothing else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "io/corpus/token_file.hpp"
#include "kernels/base/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto header = gptqd::io::parse_npy_header({reinterpret_cast<const char*>(data), size}, "fuzz");
    if (header.data_offset < 10 || header.data_offset > static_cast<std::int64_t>(size)) {
      std::abort();
    }
    for (const auto extent : header.shape) {
      if (extent < 0) {
        std::abort();
      }
    }
  } catch (const gptqd::Error& error) {
    if (error.kind() != gptqd::ErrorKind::input) {
      std::abort();
    }
  }
  return 0;
}
