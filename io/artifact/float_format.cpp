#include "io/artifact/float_format.hpp"

#include <fmt/format.h>

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
OwnedBytes dequantized(const PackedLinear& linear) {
  const auto codes = unpack_qweight(linear.qweight, linear.rows, linear.cols, linear.bits);
  std::vector<T> weights(codes.size());
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    for (std::int64_t col = 0; col < linear.cols; ++col) {
      const auto group = static_cast<std::size_t>(linear.g_idx[static_cast<std::size_t>(col)] * linear.rows + row);
      const auto place = static_cast<std::size_t>(row * linear.cols + col);
      weights[place] =
          rounded<T>(to_float(linear.scales[group]) * static_cast<float>(int{codes[place]} - int{linear.zeros[group]}));
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
      return {dequantized<Half>(linear)};
    case DType::bf16:
      return {dequantized<BFloat16>(linear)};
    default:
      return {dequantized<float>(linear)};
  }
}

}  // namespace gptqd::io
