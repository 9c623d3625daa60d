#include "pipeline/host_block.hpp"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "pipeline/run_parallel.hpp"

namespace gptqd::pipeline {

namespace {

constexpr std::int64_t alignment = 256;
constexpr std::int64_t piece_bytes = std::int64_t{32} << 20;
constexpr int reading_threads = 4;

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

/// Lays tensors out one after another, then fills them.
class Builder {
 public:
  using Fill = std::function<void(std::span<std::byte>)>;

  /// @param fill  of the bytes [first, first + size) of the tensor
  void add_piece(std::int64_t first, std::int64_t size, Fill fill) {
    pieces_.push_back({.offset = tensors_.back().offset + first, .bytes = size, .fill = std::move(fill)});
  }
  void add(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    BlockTensor tensor{.name = name, .dtype = dtype, .shape = shape};
    tensor.offset = (end_ + alignment - 1) / alignment * alignment;
    end_ = tensor.offset + tensor.bytes();
    tensors_.push_back(std::move(tensor));
  }
  template <class T>
  void add(const std::string& name, std::vector<T> values, const std::vector<std::int64_t>& shape) {
    add(name, dtype_of<T>, shape);
    const auto bytes = tensors_.back().bytes();
    require(bytes == std::ssize(values) * static_cast<std::int64_t>(sizeof(T)),
            "host block: " + name + " has another size than its shape");
    add_piece(0, bytes, [values = std::move(values)](std::span<std::byte> target) {
      std::memcpy(target.data(), values.data(), target.size());
    });
  }

  HostBlock build(const std::function<void()>& tick) && {
    HostBlock block{.tensors = std::move(tensors_), .data = HostBytes(static_cast<std::size_t>(end_))};
    run_parallel(std::ssize(pieces_), reading_threads, [&](std::int64_t i) {
      const auto& piece = pieces_[static_cast<std::size_t>(i)];
      piece.fill(
          std::span(block.data).subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.bytes)));
      tick();
    });
    return block;
  }

 private:
  struct Piece {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
    Fill fill;
  };
  std::vector<BlockTensor> tensors_;
  std::vector<Piece> pieces_;
  std::int64_t end_ = 0;
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

HostBlock read_host_block(const io::CheckpointReader& tensors, const BlockSpec& block, const PackedSource& packed,
                          const std::function<void()>& tick) {
  Builder builder;
  const auto add_from_file = [&](const std::string& name) {
    const io::TensorInfo& info = tensors.at(name);
    builder.add(name, info.dtype, info.shape);
    for (std::int64_t first = 0; first < info.bytes; first += piece_bytes) {
      builder.add_piece(first, std::min(piece_bytes, info.bytes - first), [&, first](std::span<std::byte> target) {
        tensors.read_range(info, first, target);
        require_finite(info.name, info.dtype, info.shape, target, first / size_of(info.dtype));
      });
    }
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
    } else {
      add_from_file(linear.weight_name());
    }
    if (linear.bias) {
      add_from_file(linear.bias_name());
    }
  }
  return std::move(builder).build(tick);
}

}  // namespace gptqd::pipeline
