#include "io/artifact/float_format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace gptqd::io {

namespace {

template <class T>
T rounded(float value);
template <>
float rounded<float>(float value) {
  return value;
}
template <>
Half rounded<Half>(float value) {
  return to_half(value);
}
template <>
BFloat16 rounded<BFloat16>(float value) {
  return to_bfloat16(value);
}

/// [rows, cols]. The products are exact in float: 11 bits of a scale times 9 of a difference.
template <class T>
OwnedBytes dequantized(PackedLinear linear) {
  const std::int64_t words = linear.cols * linear.bits / 32;
  const auto packed = transpose_words({linear.qweight.data(), {words, linear.rows}});
  linear.qweight = {};
  const std::size_t levels = std::size_t{1} << linear.bits;
  std::array<T, 256> of_code;
  std::vector<T> weights(static_cast<std::size_t>(linear.rows * linear.cols));
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    const auto codes =
        unpack_rows(std::span(packed).subspan(static_cast<std::size_t>(row * words), static_cast<std::size_t>(words)),
                    1, linear.cols, linear.bits);
    T* const out = weights.data() + row * linear.cols;
    for (std::size_t col = 0; col < codes.size();) {
      std::size_t end = col + 1;
      while (end < codes.size() && linear.g_idx[end] == linear.g_idx[col]) {
        ++end;
      }
      const auto group = static_cast<std::size_t>(linear.g_idx[col] * linear.rows + row);
      const float scale = to_float(linear.scales[group]);
      const int zero = linear.zeros[group];
      const auto weight = [&](std::size_t code) {
        return rounded<T>(scale * static_cast<float>(static_cast<int>(code) - zero));
      };
      if (end - col >= 2 * levels) {  // most groups: each number once
        for (std::size_t code = 0; code < levels; ++code) {
          of_code[code] = weight(code);
        }
        std::transform(codes.begin() + static_cast<std::ptrdiff_t>(col),
                       codes.begin() + static_cast<std::ptrdiff_t>(end), out + col,
                       [&](std::uint8_t code) { return of_code[code]; });
      } else {
        std::transform(codes.begin() + static_cast<std::ptrdiff_t>(col),
                       codes.begin() + static_cast<std::ptrdiff_t>(end), out + col, weight);
      }
      col = end;
    }
  }
  return OwnedBytes::of(std::move(weights));
}

}  // namespace

std::optional<std::string> FloatFormat::obstacle(const LayerFormat&) const {
  if (dtype_ != DType::f16 && dtype_ != DType::bf16 && dtype_ != DType::f32) {
    return fmt::format("weights cannot be dequantized to {}", name_of(dtype_));
  }
  return std::nullopt;
}

std::vector<FormatTensor> FloatFormat::tensors(const LayerFormat& layer) const {
  return {{.declaration = {layer.module + ".weight", dtype_, {layer.rows, layer.cols}}}};
}

std::vector<OwnedBytes> FloatFormat::bytes(PackedLinear linear) const {
  switch (dtype_) {
    case DType::f16:
      return {dequantized<Half>(std::move(linear))};
    case DType::bf16:
      return {dequantized<BFloat16>(std::move(linear))};
    default:
      return {dequantized<float>(std::move(linear))};
  }
}

}  // namespace gptqd::io
