#include "io/packed_linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>

namespace gptqd::io {

namespace {

constexpr std::int64_t bits_per_word = 32;
// g_idx holds 32-bit numbers; no product of sizes below this overflows.
constexpr std::int64_t max_extent = std::numeric_limits<std::int32_t>::max();

bool is_width(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

std::int64_t words_per_stream(std::int64_t elements, int bits) { return elements * bits / bits_per_word; }

void require_packable(std::int64_t elements, int bits, const char* what) {
  require(is_width(bits), fmt::format("{}: {} bits; expected 2, 3, 4 or 8", what, bits));
  require(elements * bits % bits_per_word == 0,
          fmt::format("{}: {} elements of {} bits do not fill whole words of 32 bits", what, elements, bits));
}

}  // namespace

std::optional<std::string> format_obstacle(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group_size) {
  if (!is_width(bits)) {
    return fmt::format("{} bits; the GPTQ format knows 2, 3, 4 and 8", bits);
  }
  if (rows <= 0 || cols <= 0) {
    return fmt::format("shape [{}, {}] is empty", rows, cols);
  }
  if (rows > max_extent || cols > max_extent) {
    return fmt::format("shape [{}, {}] has an extent above {}", rows, cols, max_extent);
  }
  const std::int64_t multiple = bits == 3 ? bits_per_word : bits_per_word / bits;
  if (cols % multiple != 0) {
    return fmt::format("{} input features are not a multiple of {}, as {}-bit words need", cols, multiple, bits);
  }
  if (rows % multiple != 0) {
    return fmt::format("{} output features are not a multiple of {}, as {}-bit words of zeros need", rows, multiple,
                       bits);
  }
  if (group_size != -1 && group_size <= 0) {
    return fmt::format("group size {}; expected a positive number, or -1 for one group", group_size);
  }
  if (group_size != -1 && cols % group_size != 0) {
    return fmt::format("{} input features are not a multiple of the group size {}", cols, group_size);
  }
  return std::nullopt;
}

void validate(const PackedLinear& linear, ErrorKind kind) {
  const auto fail = [&](const std::string& offence) { throw Error(kind, fmt::format("{}: {}", linear.name, offence)); };
  if (const auto obstacle = format_obstacle(linear.rows, linear.cols, linear.bits, linear.group_size)) {
    fail(*obstacle);
  }
  const std::int64_t groups = linear.groups();
  const std::int64_t words = words_per_stream(linear.cols, linear.bits);
  if (std::ssize(linear.qweight) != words * linear.rows) {
    fail(fmt::format("qweight has {} words, expected [{}, {}]", linear.qweight.size(), words, linear.rows));
  }
  if (std::ssize(linear.scales) != groups * linear.rows) {
    fail(fmt::format("scales has {} numbers, expected [{}, {}]", linear.scales.size(), groups, linear.rows));
  }
  if (std::ssize(linear.zeros) != groups * linear.rows) {
    fail(fmt::format("zeros has {} numbers, expected [{}, {}]", linear.zeros.size(), groups, linear.rows));
  }
  if (std::ssize(linear.g_idx) != linear.cols) {
    fail(fmt::format("g_idx has {} numbers, expected {}", linear.g_idx.size(), linear.cols));
  }
  for (std::size_t k = 0; k < linear.g_idx.size(); ++k) {
    if (linear.g_idx[k] < 0 || linear.g_idx[k] >= groups) {
      fail(fmt::format("g_idx[{}] is {}, expected a group from 0 to {}", k, linear.g_idx[k], groups - 1));
    }
  }
  const int least_zero = linear.sym ? 1 << (linear.bits - 1) : 0;
  const int most_zero = linear.sym ? least_zero : (1 << linear.bits) - 1;
  for (std::size_t i = 0; i < linear.zeros.size(); ++i) {
    if (linear.zeros[i] < least_zero || linear.zeros[i] > most_zero) {
      fail(fmt::format("zeros[{}] is {}, expected {} to {} with {} {} bits", i, linear.zeros[i], least_zero, most_zero,
                       linear.bits, linear.sym ? "symmetric" : "asymmetric"));
    }
  }
  for (std::size_t i = 0; i < linear.scales.size(); ++i) {
    if ((linear.scales[i].bits & 0x7c00u) == 0x7c00u) {
      fail(fmt::format("scales[{}] is {}, expected a finite number", i, to_float(linear.scales[i])));
    }
  }
}

bool is_trivial_g_idx(std::span<const std::int32_t> g_idx, std::int64_t group_size) {
  for (std::size_t k = 0; k < g_idx.size(); ++k) {
    const std::int64_t expected = group_size == -1 ? 0 : static_cast<std::int64_t>(k) / group_size;
    if (g_idx[k] != expected) {
      return false;
    }
  }
  return true;
}

std::vector<std::uint32_t> pack_rows(ConstTensorView<std::uint8_t, 2> codes, int bits) {
  require_packable(codes.cols(), bits, "pack_rows");
  std::vector<std::uint32_t> words;
  words.reserve(static_cast<std::size_t>(codes.rows() * words_per_stream(codes.cols(), bits)));
  for (std::int64_t row = 0; row < codes.rows(); ++row) {
    const std::uint8_t* code = codes.row(row);
    std::uint64_t pending = 0;
    int pending_bits = 0;
    for (std::int64_t col = 0; col < codes.cols(); ++col) {
      require(code[col] >> bits == 0, "pack_rows: a code does not fit its bits");
      pending |= static_cast<std::uint64_t>(code[col]) << pending_bits;
      pending_bits += bits;
      if (pending_bits >= bits_per_word) {
        words.push_back(static_cast<std::uint32_t>(pending));
        pending >>= bits_per_word;
        pending_bits -= bits_per_word;
      }
    }
  }
  return words;
}

std::vector<std::uint8_t> unpack_rows(std::span<const std::uint32_t> words, std::int64_t rows, std::int64_t cols,
                                      int bits) {
  require_packable(cols, bits, "unpack_rows");
  require(std::ssize(words) == rows * words_per_stream(cols, bits),
          "unpack_rows: the number of words does not fit the shape");
  const std::uint32_t mask = (1u << bits) - 1;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
  std::uint8_t* code = codes.data();
  const std::uint32_t* word = words.data();
  for (std::int64_t row = 0; row < rows; ++row) {
    std::uint64_t pending = 0;
    int pending_bits = 0;
    for (std::int64_t col = 0; col < cols; ++col) {
      if (pending_bits < bits) {
        pending |= static_cast<std::uint64_t>(*word++) << pending_bits;
        pending_bits += bits_per_word;
      }
      *code++ = static_cast<std::uint8_t>(pending & mask);
      pending >>= bits;
      pending_bits -= bits;
    }
  }
  return codes;
}

std::vector<std::uint32_t> pack_qweight(ConstTensorView<std::uint8_t, 2> codes, int bits) {
  const auto words = pack_rows(codes, bits);
  return transpose_words({words.data(), {codes.rows(), words_per_stream(codes.cols(), bits)}});
}

std::vector<std::uint8_t> unpack_qweight(std::span<const std::uint32_t> qweight, std::int64_t rows, std::int64_t cols,
                                         int bits) {
  require_packable(cols, bits, "unpack_qweight");
  const std::int64_t words = words_per_stream(cols, bits);
  require(std::ssize(qweight) == rows * words, "unpack_qweight: the number of words does not fit the shape");
  return unpack_rows(transpose_words({qweight.data(), {words, rows}}), rows, cols, bits);
}

std::vector<std::uint32_t> pack_qzeros(ConstTensorView<std::uint8_t, 2> zeros, int bits, ZeroFormat format) {
  require_packable(zeros.cols(), bits, "pack_qzeros");
  if (format == ZeroFormat::v2) {
    return pack_rows(zeros, bits);
  }
  const unsigned mask = (1u << bits) - 1;
  std::vector<std::uint8_t> stored(static_cast<std::size_t>(zeros.size()));
  for (std::int64_t group = 0; group < zeros.rows(); ++group) {
    std::transform(zeros.row(group), zeros.row(group) + zeros.cols(), stored.data() + group * zeros.cols(),
                   [mask](std::uint8_t zero) { return static_cast<std::uint8_t>((zero - 1u) & mask); });
  }
  return pack_rows({stored.data(), zeros.shape}, bits);
}

std::vector<std::uint8_t> unpack_qzeros(std::span<const std::uint32_t> qzeros, std::int64_t groups, std::int64_t rows,
                                        int bits, ZeroFormat format) {
  auto zeros = unpack_rows(qzeros, groups, rows, bits);
  if (format == ZeroFormat::v1) {
    const unsigned mask = (1u << bits) - 1;
    std::transform(zeros.begin(), zeros.end(), zeros.begin(),
                   [mask](std::uint8_t zero) { return static_cast<std::uint8_t>((zero + 1u) & mask); });
  }
  return zeros;
}

std::vector<std::uint32_t> transpose_words(ConstTensorView<std::uint32_t, 2> words) {
  // Tiles of 16 x 16 words: one cache line of 64 bytes on either side.
  constexpr std::int64_t tile = 16;
  const std::int64_t rows = words.rows();
  const std::int64_t cols = words.cols();
  std::vector<std::uint32_t> result(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; row += tile) {
    const std::int64_t row_end = std::min(row + tile, rows);
    for (std::int64_t col = 0; col < cols; col += tile) {
      const std::int64_t col_end = std::min(col + tile, cols);
      for (std::int64_t i = row; i < row_end; ++i) {
        for (std::int64_t j = col; j < col_end; ++j) {
          result[static_cast<std::size_t>(j * rows + i)] = words(i, j);
        }
      }
    }
  }
  return result;
}

}  // namespace gptqd::io
