#pragma once
/// @file Tensors of a quantized linear as numbers, their types and shapes checked.
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/safetensors.hpp"

namespace gptqd::io {

/// @throws Error (input) unless the tensor is there with that type and shape
const TensorInfo& expect_tensor(const CheckpointReader& tensors, const TensorDeclaration& expected);

/// The tensor's elements. I32 words may be read as unsigned ones. @throws Error (input) as expect_tensor
template <class T>
std::vector<T> read_elements(const CheckpointReader& tensors, const TensorDeclaration& expected) {
  const TensorInfo& info = expect_tensor(tensors, expected);
  std::vector<T> elements(static_cast<std::size_t>(info.bytes) / sizeof(T));
  tensors.read(info, std::as_writable_bytes(std::span(elements)));
  return elements;
}

/// Scales that lie as F16, BF16 or F32 in a tensor of that name and shape.
/// @throws Error (input) as expect_tensor, and for one that is no F16 number
std::vector<Half> read_scales(const CheckpointReader& tensors, const std::string& name,
                              const std::vector<std::int64_t>& shape);

/// k / group_size for all k < cols; group_size −1: all 0.
std::vector<std::int32_t> trivial_g_idx(std::int64_t cols, std::int64_t group_size);

}  // namespace gptqd::io
