#include "pipeline/host_block.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

namespace gptqd::pipeline {

namespace {

constexpr std::int64_t alignment = 256;

/// Index of the first element whose exponent is all ones, or -1.
template <class Word>
std::int64_t first_not_finite(std::span<const std::byte> data, Word exponent_mask) {
  const auto count = static_cast<std::int64_t>(data.size() / sizeof(Word));
  constexpr std::int64_t chunk = 4096;
  for (std::int64_t begin = 0; begin < count; begin += chunk) {
    const std::int64_t end = std::min(count, begin + chunk);
    Word words[chunk];
    std::memcpy(words, data.data() + begin * static_cast<std::int64_t>(sizeof(Word)),
                static_cast<std::size_t>(end - begin) * sizeof(Word));
    bool found = false;
    for (std::int64_t i = 0; i < end - begin; ++i) {
      found |= (words[i] & exponent_mask) == exponent_mask;
    }
    for (std::int64_t i = 0; found && i < end - begin; ++i) {
      if ((words[i] & exponent_mask) == exponent_mask) {
        return begin + i;
      }
    }
  }
  return -1;
}

class Builder {
 public:
  std::span<std::byte> add(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    BlockTensor tensor{.name = name, .dtype = dtype, .shape = shape};
    tensor.offset = (static_cast<std::int64_t>(block_.data.size()) + alignment - 1) / alignment * alignment;
    block_.data.resize(static_cast<std::size_t>(tensor.offset + tensor.bytes()));
    block_.tensors.push_back(tensor);
    return std::span(block_.data)
        .subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.bytes()));
  }
  template <class T>
  void add(const std::string& name, const std::vector<T>& values, const std::vector<std::int64_t>& shape) {
    const auto target = add(name, dtype_of<T>, shape);
    require(target.size() == values.size() * sizeof(T), "host block: " + name + " has another size than its shape");
    std::memcpy(target.data(), values.data(), target.size());
  }
  HostBlock take() { return std::move(block_); }

 private:
  HostBlock block_;
};

/// [groups, rows] as the artifact stores them -> [rows, groups] as kernels read them.
template <class Out, class In, class Convert>
std::vector<Out> transposed(const std::vector<In>& values, std::int64_t groups, std::int64_t rows, Convert convert) {
  std::vector<Out> result(values.size());
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < rows; ++r) {
      result[static_cast<std::size_t>(r * groups + g)] = convert(values[static_cast<std::size_t>(g * rows + r)]);
    }
  }
  return result;
}

void add_packed(Builder& builder, const LinearSpec& spec, const io::PackedLinear& linear) {
  if (linear.rows != spec.rows || linear.cols != spec.cols) {
    throw Error(ErrorKind::input,
                fmt::format("{}: packed as [{}, {}], the model has [{}, {}]; the files belong to another model",
                            spec.module, linear.rows, linear.cols, spec.rows, spec.cols));
  }
  const std::int64_t words = linear.cols * linear.bits / 32;
  const std::int64_t groups = linear.groups();
  builder.add(spec.module + ".packed",
              io::transpose_words(ConstTensorView<std::uint32_t, 2>(linear.qweight.data(), {words, linear.rows})),
              {linear.rows, words});
  builder.add(spec.module + ".scales",
              transposed<float>(linear.scales, groups, linear.rows, [](Half h) { return to_float(h); }),
              {linear.rows, groups});
  builder.add(spec.module + ".zeros",
              transposed<std::uint8_t>(linear.zeros, groups, linear.rows, [](std::uint8_t z) { return z; }),
              {linear.rows, groups});
  builder.add(spec.module + ".g_idx", linear.g_idx, {linear.cols});
}

}  // namespace

std::int64_t BlockTensor::bytes() const {
  std::int64_t count = 1;
  for (const auto extent : shape) {
    count *= extent;
  }
  return count * size_of(dtype);
}

std::string HostBlock::layout() const {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& tensor : tensors) {
    list.push_back({tensor.name, gptqd::name_of(tensor.dtype), tensor.shape, tensor.offset});
  }
  return list.dump();
}

std::vector<BlockTensor> HostBlock::parse_layout(const std::string& layout) {
  std::vector<BlockTensor> tensors;
  for (const auto& entry : nlohmann::json::parse(layout)) {
    tensors.push_back({.name = entry.at(0),
                       .dtype = dtype_from_name(entry.at(1).get<std::string>()).value(),
                       .shape = entry.at(2),
                       .offset = entry.at(3)});
  }
  return tensors;
}

void require_finite(std::string_view name, DType dtype, const std::vector<std::int64_t>& shape,
                    std::span<const std::byte> data) {
  std::int64_t index = -1;
  switch (dtype) {
    case DType::f32:
      index = first_not_finite<std::uint32_t>(data, 0x7f800000u);
      break;
    case DType::f16:
      index = first_not_finite<std::uint16_t>(data, 0x7c00u);
      break;
    case DType::bf16:
      index = first_not_finite<std::uint16_t>(data, 0x7f80u);
      break;
    default:
      break;
  }
  if (index >= 0) {
    const std::int64_t width = shape.empty() ? 1 : shape.back();
    throw Error(ErrorKind::input, fmt::format("tensor {} [{}] is not finite at row {}, column {}; the checkpoint is "
                                              "damaged or was trained into overflow: get it again",
                                              name, fmt::join(shape, ", "), index / width, index % width));
  }
}

HostBlock read_host_block(const io::CheckpointReader& tensors, const BlockSpec& block, const PackedSource& packed,
                          const std::function<void()>& tick) {
  Builder builder;
  const auto add_from_file = [&](const std::string& name) {
    const io::TensorInfo& info = tensors.at(name);
    const auto target = builder.add(name, info.dtype, info.shape);
    tensors.read(info, target);
    require_finite(name, info.dtype, info.shape, target);
    tick();
  };
  for (const auto& norm : block.norms()) {
    add_from_file(norm.weight_name());
    if (norm.has_bias()) {
      add_from_file(norm.bias_name());
    }
  }
  for (const auto& linear : block.linears()) {
    if (const auto found = packed ? packed(linear.module) : std::nullopt) {
      add_packed(builder, linear, *found);
      tick();
    } else {
      add_from_file(linear.weight_name());
    }
    if (linear.bias) {
      add_from_file(linear.bias_name());
    }
  }
  return builder.take();
}

}  // namespace gptqd::pipeline
