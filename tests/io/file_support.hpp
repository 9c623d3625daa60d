#pragma once
/// @file What the tests of io's files share: small inputs, and the error of a call.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "io/packed_linear.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io::test {

/// The Error that `body` throws; one with the message "no error" when it throws none.
template <class Body>
Error error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::internal, "no error");
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

/// A safetensors file with that header and `data_bytes` bytes of data.
inline std::string safetensors_text(std::string_view header, std::size_t data_bytes) {
  std::string text(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(text.data(), &length, sizeof(length));
  text += header;
  for (std::size_t i = 0; i < data_bytes; ++i) {
    text += static_cast<char>(i);
  }
  return text;
}

inline std::vector<std::uint8_t> random_codes(std::int64_t count, int bits, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count));
  for (auto& code : codes) {
    code = static_cast<std::uint8_t>(generator() & ((1u << bits) - 1));
  }
  return codes;
}

/// A valid layer with random codes, zeros (unless sym) and scales, and the trivial g_idx.
inline PackedLinear random_linear(const std::string& name, std::int64_t rows, std::int64_t cols, int bits,
                                  std::int64_t group_size, bool sym, unsigned seed) {
  PackedLinear linear;
  linear.name = name;
  linear.bits = bits;
  linear.group_size = group_size;
  linear.sym = sym;
  linear.rows = rows;
  linear.cols = cols;
  const auto codes = random_codes(rows * cols, bits, seed);
  linear.qweight = pack_qweight({codes.data(), {rows, cols}}, bits);
  const std::int64_t groups = linear.groups();
  linear.zeros = random_codes(groups * rows, bits, seed + 1);
  if (sym) {
    linear.zeros.assign(linear.zeros.size(), static_cast<std::uint8_t>(1 << (bits - 1)));
  }
  const auto scale_codes = random_codes(groups * rows, 8, seed + 2);
  for (const auto code : scale_codes) {
    linear.scales.push_back(to_half(0.001f * static_cast<float>(code + 1)));
  }
  for (std::int64_t k = 0; k < cols; ++k) {
    linear.g_idx.push_back(static_cast<std::int32_t>(group_size == -1 ? 0 : k / group_size));
  }
  linear.record = {{"loss", 0.5 + seed}, {"module", name}};
  return linear;
}

inline std::vector<std::uint16_t> bits_of(const std::vector<Half>& numbers) {
  std::vector<std::uint16_t> bits;
  for (const auto number : numbers) {
    bits.push_back(number.bits);
  }
  return bits;
}

/// Every field but the record.
inline void expect_same_layer(const PackedLinear& got, const PackedLinear& expected) {
  EXPECT_EQ(got.name, expected.name);
  EXPECT_EQ(got.bits, expected.bits);
  EXPECT_EQ(got.group_size, expected.group_size);
  EXPECT_EQ(got.sym, expected.sym);
  EXPECT_EQ(got.rows, expected.rows);
  EXPECT_EQ(got.cols, expected.cols);
  EXPECT_EQ(got.qweight, expected.qweight);
  EXPECT_EQ(bits_of(got.scales), bits_of(expected.scales));
  EXPECT_EQ(got.zeros, expected.zeros);
  EXPECT_EQ(got.g_idx, expected.g_idx);
}

}  // namespace gptqd::io::test
