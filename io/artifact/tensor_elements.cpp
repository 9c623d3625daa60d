#include "io/artifact/tensor_elements.hpp"

#include <algorithm>

namespace gptqd::io {

namespace {

template <class T>
std::vector<Half> exact_halves(const std::vector<T>& values, const std::string& name) {
  std::vector<Half> halves;
  halves.reserve(values.size());
  for (const auto value : values) {
    float number = 0;
    if constexpr (std::is_same_v<T, float>) {
      number = value;
    } else {
      number = to_float(value);
    }
    halves.push_back(to_half(number));
    if (to_float(halves.back()) != number) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: {} is no float16 number, the type in which scales are kept here", name, number));
    }
  }
  return halves;
}

}  // namespace

const TensorInfo& expect_tensor(const CheckpointReader& tensors, const TensorDeclaration& expected) {
  const TensorInfo& info = tensors.at(expected.name);
  if (info.dtype != expected.dtype || info.shape != expected.shape) {
    throw Error(ErrorKind::input,
                fmt::format("{}: {} [{}], expected {} [{}]", info.name, name_of(info.dtype),
                            fmt::join(info.shape, ", "), name_of(expected.dtype), fmt::join(expected.shape, ", ")));
  }
  return info;
}

std::vector<Half> read_scales(const CheckpointReader& tensors, const std::string& name,
                              const std::vector<std::int64_t>& shape) {
  switch (tensors.at(name).dtype) {
    case DType::bf16:
      return exact_halves(read_elements<BFloat16>(tensors, {name, DType::bf16, shape}), name);
    case DType::f32:
      return exact_halves(read_elements<float>(tensors, {name, DType::f32, shape}), name);
    default:
      return read_elements<Half>(tensors, {name, DType::f16, shape});
  }
}

std::vector<std::int32_t> trivial_g_idx(std::int64_t cols, std::int64_t group_size) {
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(cols));
  for (std::int64_t k = 0; k < cols; ++k) {
    g_idx[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(group_size == -1 ? 0 : k / group_size);
  }
  return g_idx;
}

}  // namespace gptqd::io
