#include "pipeline/block_image.hpp"

#include <algorithm>
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

/// Throws Error (input) naming the first element of a floating tensor that is not finite.
/// @param data   a part of the tensor
/// @param first  the element that the part begins with
void require_finite(std::string_view name, DType dtype, const std::vector<std::int64_t>& shape,
                    std::span<const std::byte> data, std::int64_t first) {
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
    index += first;
    const std::int64_t width = shape.empty() ? 1 : shape.back();
    throw Error(ErrorKind::input, fmt::format("tensor {} [{}] is not finite at row {}, column {}; the checkpoint is "
                                              "damaged or was trained into overflow: get it again",
                                              name, fmt::join(shape, ", "), index / width, index % width));
  }
}

/// Lays tensors out one after another.
class Builder {
 public:
  void add_from_file(const io::CheckpointReader& tensors, const std::string& name) {
    const io::TensorInfo& info = tensors.at(name);
    add(name, info.dtype, info.shape);
    auto pieces = pieces_of(tensors, info, image_.tensors.back().offset);
    std::move(pieces.begin(), pieces.end(), std::back_inserter(image_.pieces));
  }
  void add(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    BlockTensor tensor{.name = name, .dtype = dtype, .shape = shape};
    tensor.offset = (image_.bytes + alignment - 1) / alignment * alignment;
    image_.bytes = tensor.offset + tensor.bytes();
    image_.tensors.push_back(std::move(tensor));
  }
  template <class T>
  void add(const std::string& name, std::vector<T> values, const std::vector<std::int64_t>& shape) {
    add(name, dtype_of<T>, shape);
    const BlockTensor& tensor = image_.tensors.back();
    require(tensor.bytes() == std::ssize(values) * static_cast<std::int64_t>(sizeof(T)),
            "block image: " + name + " has another size than its shape");
    const auto shared = std::make_shared<const std::vector<T>>(std::move(values));
    for (std::int64_t first = 0; first < tensor.bytes(); first += fill_piece_bytes) {
      image_.pieces.push_back({.offset = tensor.offset + first,
                               .bytes = std::min(fill_piece_bytes, tensor.bytes() - first),
                               .fill = [shared, first](std::span<std::byte> target) {
                                 const auto all = std::as_bytes(std::span(*shared));
                                 std::memcpy(target.data(), all.data() + first, target.size());
                               }});
    }
  }

  BlockImage build() && { return std::move(image_); }

 private:
  BlockImage image_;
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

std::string BlockImage::layout() const {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& tensor : tensors) {
    list.push_back({tensor.name, gptqd::name_of(tensor.dtype), tensor.shape, tensor.offset});
  }
  return list.dump();
}

std::vector<BlockTensor> BlockImage::parse_layout(const std::string& layout) {
  std::vector<BlockTensor> tensors;
  for (const auto& entry : nlohmann::json::parse(layout)) {
    tensors.push_back({.name = entry.at(0),
                       .dtype = dtype_from_name(entry.at(1).get<std::string>()).value(),
                       .shape = entry.at(2),
                       .offset = entry.at(3)});
  }
  return tensors;
}

std::vector<FillPiece> pieces_of(const io::CheckpointReader& tensors, const io::TensorInfo& info, std::int64_t offset) {
  std::vector<FillPiece> pieces;
  for (std::int64_t first = 0; first < info.bytes; first += fill_piece_bytes) {
    pieces.push_back({.offset = offset + first,
                      .bytes = std::min(fill_piece_bytes, info.bytes - first),
                      .fill = [&tensors, &info, first](std::span<std::byte> target) {
                        tensors.read_range(info, first, target);
                        require_finite(info.name, info.dtype, info.shape, target, first / size_of(info.dtype));
                      }});
  }
  return pieces;
}

BlockImage block_image(const io::CheckpointReader& tensors, const BlockSpec& block, const PackedSource& packed) {
  Builder builder;
  for (const auto& norm : block.norms()) {
    builder.add_from_file(tensors, norm.weight_name());
    if (norm.has_bias()) {
      builder.add_from_file(tensors, norm.bias_name());
    }
  }
  for (const auto& linear : block.linears()) {
    if (const auto found = packed ? packed(linear.module) : std::nullopt) {
      add_packed(builder, linear, *found);
    } else {
      builder.add_from_file(tensors, linear.weight_name());
    }
    if (linear.bias) {
      builder.add_from_file(tensors, linear.bias_name());
    }
  }
  return std::move(builder).build();
}

}  // namespace gptqd::pipeline
