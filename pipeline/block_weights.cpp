#include "pipeline/block_weights.hpp"

#include <algorithm>

namespace gptqd::pipeline {

namespace {

/// `raw`'s tensor converted to `dtype` in a buffer of its own.
Buffer converted(Backend& backend, Stream& stream, ConstAnyView<2> source, DType dtype) {
  Buffer target = backend.allocate(source.size() * size_of(dtype));
  backend.convert(stream, {.x = source, .y = target.any_view<2>(dtype, source.shape)});
  return target;
}

/// Reads a tensor of the checkpoint to the device as it is stored: one or two dimensions, seen as a matrix.
struct Loaded {
  Buffer buffer;
  ConstAnyView<2> view;
};
Loaded load(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const std::string& name) {
  const io::TensorInfo& info = tensors.at(name);
  Loaded loaded{.buffer = backend.allocate(std::max<std::int64_t>(info.bytes, 1)), .view = {}};
  fill_buffer(backend, stream, loaded.buffer, pieces_of(tensors, info, 0), [] {});
  const std::int64_t cols = info.shape.back();
  const std::int64_t rows = info.bytes / size_of(info.dtype) / std::max<std::int64_t>(cols, 1);
  loaded.view = ConstAnyView<2>(loaded.buffer.data(), info.dtype, {rows, cols});
  return loaded;
}

}  // namespace

std::optional<ConstTensorView<float, 1>> DeviceLinear::bias_view() const {
  if (!bias) {
    return std::nullopt;
  }
  return bias.view<float, 1>({rows});
}

BlockWeights::BlockWeights(Backend& backend, Stream& stream, const BlockSpec& block,
                           const std::vector<BlockTensor>& layout, const Buffer& raw, DType stored) {
  std::map<std::string, const BlockTensor*> by_name;
  for (const auto& tensor : layout) {
    by_name.emplace(tensor.name, &tensor);
  }
  const auto matrix = [&](const std::string& name) {
    const BlockTensor& tensor = *by_name.at(name);
    const std::int64_t cols = tensor.shape.back();
    const std::int64_t rows = tensor.shape.size() == 2 ? tensor.shape.front() : 1;
    return ConstAnyView<2>(raw.any_view<2>(tensor.dtype, {rows, cols}, tensor.offset));
  };
  const DType compute = backend.compute_dtype(stored);
  for (const auto& spec : block.linears()) {
    DeviceLinear linear{.rows = spec.rows, .cols = spec.cols, .dtype = compute, .weight = {}, .bias = {}};
    if (by_name.contains(spec.module + ".packed")) {
      linear.weight = backend.allocate(spec.rows * spec.cols * size_of(compute));
      const auto g_idx = matrix(spec.module + ".g_idx").as<std::int32_t>();
      const auto codes = matrix(spec.module + ".packed").as<std::uint32_t>();
      backend.dequantize(stream, {.bits = static_cast<int>(codes.cols() * 32 / spec.cols),
                                  .packed = codes,
                                  .scales = matrix(spec.module + ".scales").as<float>(),
                                  .zeros = matrix(spec.module + ".zeros").as<std::uint8_t>(),
                                  .group = ConstTensorView<std::int32_t, 1>(g_idx.data, {spec.cols}),
                                  .stored = stored,
                                  .weight = linear.weight_view()});
    } else {
      linear.weight = converted(backend, stream, matrix(spec.weight_name()), compute);
    }
    if (spec.bias) {
      linear.bias = converted(backend, stream, matrix(spec.bias_name()), DType::f32);
    }
    linears_.emplace(spec.module, std::move(linear));
  }
  for (const auto& spec : block.norms()) {
    DeviceNorm norm{
        .width = spec.width, .weight = converted(backend, stream, matrix(spec.weight_name()), DType::f32), .bias = {}};
    if (spec.has_bias()) {
      norm.bias = converted(backend, stream, matrix(spec.bias_name()), DType::f32);
    }
    norms_.emplace(spec.module, std::move(norm));
  }
}

Buffer load_matrix(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const std::string& name,
                   DType dtype) {
  Loaded loaded = load(backend, stream, tensors, name);
  if (loaded.view.dtype == dtype) {
    return std::move(loaded.buffer);
  }
  return converted(backend, stream, loaded.view, dtype);
}

Buffer load_vector(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const std::string& name) {
  return load_matrix(backend, stream, tensors, name, DType::f32);
}

DeviceLinear load_linear(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const LinearSpec& spec,
                         DType dtype) {
  DeviceLinear linear{.rows = spec.rows,
                      .cols = spec.cols,
                      .dtype = dtype,
                      .weight = load_matrix(backend, stream, tensors, spec.weight_name(), dtype),
                      .bias = {}};
  if (spec.bias) {
    linear.bias = load_vector(backend, stream, tensors, spec.bias_name());
  }
  return linear;
}

DeviceNorm load_norm(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const NormSpec& spec) {
  DeviceNorm norm{.width = spec.width, .weight = load_vector(backend, stream, tensors, spec.weight_name()), .bias = {}};
  if (spec.has_bias()) {
    norm.bias = load_vector(backend, stream, tensors, spec.bias_name());
  }
  return norm;
}

}  // namespace gptqd::pipeline
