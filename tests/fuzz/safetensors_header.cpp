/// @file Fuzzes the safetensors reader: any bytes give a header or an input error, nothing else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "io/safetensors.hpp"
#include "kernels/base/error.hpp"

namespace {

using gptqd::io::SafetensorsHeader;

/// Ends the run unless the tensors cover the data exactly, in order.
void check(const SafetensorsHeader& header, std::int64_t data_bytes) {
  std::int64_t end = 0;
  for (const auto& tensor : header.tensors) {
    if (tensor.offset != end || tensor.bytes < 0 || tensor.bytes > data_bytes - end) {
      std::abort();
    }
    end += tensor.bytes;
  }
  if (end != data_bytes) {
    std::abort();
  }
}

/// Runs `parse`; any exception but an input error ends the run.
template <class Parse>
void expect_header_or_input_error(Parse&& parse) {
  try {
    parse();
  } catch (const gptqd::Error& error) {
    if (error.kind() != gptqd::ErrorKind::input) {
      std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  expect_header_or_input_error([&] {
    const auto header = gptqd::io::parse_safetensors_image(bytes, "fuzz");
    std::uint64_t header_bytes = 0;
    for (std::size_t i = 8; i-- > 0;) {
      header_bytes = header_bytes << 8 | data[i];
    }
    check(header, static_cast<std::int64_t>(size - 8 - header_bytes));
  });
  // The first two bytes say how much data stands behind a header that is the rest.
  if (size >= 2) {
    const std::int64_t data_bytes = data[0] | data[1] << 8;
    expect_header_or_input_error(
        [&] { check(gptqd::io::parse_safetensors_header(bytes.subspan(2), data_bytes, "fuzz"), data_bytes); });
  }
  return 0;
}
