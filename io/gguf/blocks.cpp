#include "io/gguf/blocks.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>

namespace gptqd::io {

namespace {

constexpr std::int64_t block_elements = 32;
using BlockValues = std::array<std::uint8_t, block_elements>;

/// Low nibbles: byte j holds element j below element j + 16.
std::byte* put_nibbles(const BlockValues& values, std::byte* out) {
  for (std::size_t j = 0; j < block_elements / 2; ++j) {
    *out++ = static_cast<std::byte>((values[j] & 15u) | (values[j + block_elements / 2] & 15u) << 4);
  }
  return out;
}

std::byte* put_values(GgmlType type, const BlockValues& values, std::byte* out) {
  if (type == GgmlType::q8_0) {
    std::memcpy(out, values.data(), values.size());
    return out + values.size();
  }
  if (type == GgmlType::q5_0) {
    std::uint32_t high = 0;
    for (std::size_t j = 0; j < block_elements; ++j) {
      high |= static_cast<std::uint32_t>(values[j] >> 4) << j;
    }
    std::memcpy(out, &high, sizeof(high));
    out += sizeof(high);
  }
  return put_nibbles(values, out);
}

}  // namespace

std::optional<GgmlType> block_type(const LayerSettings& settings) {
  switch (settings.bits) {
    case 2:
    case 3:
      return GgmlType::q4_0;
    case 4:
      return settings.sym ? GgmlType::q4_0 : GgmlType::q5_0;
    case 8:
      return settings.sym ? std::optional(GgmlType::q8_0) : std::nullopt;
    default:
      return std::nullopt;
  }
}

std::optional<std::string> block_obstacle(const LayerFormat& layer) {
  const auto& settings = layer.settings;
  if (!block_type(settings)) {
    return fmt::format("no block type of GGUF holds {} bits, {}, exactly; choose \"gptq_v2\" or \"compressed-tensors\"",
                       settings.bits, settings.sym ? "symmetric" : "asymmetric");
  }
  if (settings.reordered) {
    return "GGUF has no order of columns, as dynamic act-order needs; choose \"gptq\" or \"gptq_v2\", or quantize with "
           "--act-order static";
  }
  if (layer.cols % block_elements != 0 || (settings.group_size != -1 && settings.group_size % block_elements != 0)) {
    return fmt::format("GGUF has blocks of 32 columns; got {} columns in groups of {}", layer.cols,
                       settings.group_size);
  }
  return std::nullopt;
}

std::vector<std::byte> to_blocks(const PackedLinear& linear, const std::vector<std::int64_t>& row_order) {
  const LayerSettings settings{.bits = linear.bits, .group_size = linear.group_size, .sym = linear.sym};
  const GgmlType type = block_type(settings).value();
  const int bias = type == GgmlType::q4_0 ? 8 : type == GgmlType::q5_0 ? 16 : 0;
  const std::int64_t words = linear.cols * linear.bits / 32;
  const std::int64_t group = linear.group_size == -1 ? linear.cols : linear.group_size;
  const auto packed = transpose_words({linear.qweight.data(), {words, linear.rows}});
  std::vector<std::byte> blocks(
      static_cast<std::size_t>(linear.rows * (linear.cols / block_elements) * block_of(type).bytes));
  std::byte* out = blocks.data();
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    const std::int64_t from = row_order.empty() ? row : row_order[static_cast<std::size_t>(row)];
    const auto codes =
        unpack_rows(std::span(packed).subspan(static_cast<std::size_t>(from * words), static_cast<std::size_t>(words)),
                    1, linear.cols, linear.bits);
    for (std::int64_t col = 0; col < linear.cols; col += block_elements) {
      const auto place = static_cast<std::size_t>(col / group * linear.rows + from);
      std::memcpy(out, &linear.scales[place].bits, sizeof(std::uint16_t));
      out += sizeof(std::uint16_t);
      const int shift = bias - int{linear.zeros[place]};
      BlockValues values;
      for (std::size_t j = 0; j < values.size(); ++j) {
        values[j] = static_cast<std::uint8_t>(codes[static_cast<std::size_t>(col) + j] + shift);
      }
      out = put_values(type, values, out);
    }
  }
  return blocks;
}

}  // namespace gptqd::io
