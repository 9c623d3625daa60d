#include "io/gguf/gguf_file.hpp"

#include <fmt/format.h>

#include <array>
#include <set>
#include <string_view>
#include <type_traits>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int64_t alignment = 32;

enum class ValueType : std::uint32_t { u32 = 4, i32 = 5, f32 = 6, boolean = 7, string = 8, array = 9 };

std::int64_t aligned(std::int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

/// Little-endian bytes of a header.
class Bytes {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void type(ValueType type) { number(static_cast<std::uint32_t>(type)); }
  void text(std::string_view text) {
    number(static_cast<std::uint64_t>(text.size()));
    bytes_.append(text);
  }

  void value(std::uint32_t value) { typed(ValueType::u32, value); }
  void value(float value) { typed(ValueType::f32, value); }
  void value(bool value) { typed(ValueType::boolean, static_cast<std::uint8_t>(value)); }
  void value(const std::string& value) {
    type(ValueType::string);
    text(value);
  }
  void value(const std::vector<std::string>& values) {
    array(ValueType::string, values.size());
    for (const auto& value : values) {
      text(value);
    }
  }
  void value(const std::vector<std::int32_t>& values) { numbers(ValueType::i32, values); }
  void value(const std::vector<float>& values) { numbers(ValueType::f32, values); }

  std::string& get() { return bytes_; }

 private:
  template <class T>
  void typed(ValueType kind, T value) {
    type(kind);
    number(value);
  }
  void array(ValueType kind, std::size_t count) {
    type(ValueType::array);
    type(kind);
    number(static_cast<std::uint64_t>(count));
  }
  template <class T>
  void numbers(ValueType kind, const std::vector<T>& values) {
    array(kind, values.size());
    for (const T value : values) {
      number(value);
    }
  }

  std::string bytes_;
};

std::string header_bytes(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors) {
  constexpr std::uint32_t version = 3;
  Bytes header;
  for (const char letter : std::string_view("GGUF")) {
    header.number(letter);
  }
  header.number(version);
  header.number(static_cast<std::uint64_t>(tensors.size()));
  header.number(static_cast<std::uint64_t>(metadata.size()));
  for (const auto& [key, value] : metadata) {
    header.text(key);
    std::visit([&](const auto& content) { header.value(content); }, value);
  }
  std::set<std::string_view> names;
  std::int64_t offset = 0;
  for (const auto& tensor : tensors) {
    require(names.insert(tensor.name).second, fmt::format("gguf: two tensors are named \"{}\"", tensor.name));
    header.text(tensor.name);
    header.number(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) {
      header.number(static_cast<std::uint64_t>(*extent));
    }
    header.number(static_cast<std::uint32_t>(tensor.type));
    header.number(static_cast<std::uint64_t>(offset));
    offset += aligned(tensor.bytes());
  }
  header.get().resize(static_cast<std::size_t>(aligned(std::ssize(header.get()))));
  return std::move(header.get());
}

}  // namespace

GgmlBlock block_of(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
      return {.elements = 1, .bytes = 4};
    case GgmlType::f16:
    case GgmlType::bf16:
      return {.elements = 1, .bytes = 2};
    case GgmlType::q4_0:
      return {.elements = 32, .bytes = 18};
    case GgmlType::q5_0:
      return {.elements = 32, .bytes = 22};
    case GgmlType::q8_0:
      return {.elements = 32, .bytes = 34};
  }
  throw Error(ErrorKind::internal, "gguf: a type without a block");
}

std::int64_t GgufTensor::bytes() const {
  const auto block = block_of(type);
  std::int64_t elements = 1;
  for (const auto extent : shape) {
    elements *= extent;
  }
  require(!shape.empty() && shape.back() % block.elements == 0,
          fmt::format("gguf: a row of tensor \"{}\" is no whole number of blocks", name));
  return elements / block.elements * block.bytes;
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata, std::vector<GgufTensor> tensors)
    : tensors_(std::move(tensors)), file_(path) {
  const std::string header = header_bytes(metadata, tensors_);
  write(std::as_bytes(std::span(header)));
  missing_bytes_ = tensors_.empty() ? 0 : tensors_.front().bytes();
}

void GgufWriter::append(std::size_t index, std::span<const std::byte> data) {
  require(index == current_ && std::ssize(data) <= missing_bytes_,
          fmt::format("{}: got {} bytes of tensor {}, expected at most {} of tensor {}", file_.path().string(),
                      data.size(), index, missing_bytes_, current_));
  write(data);
  missing_bytes_ -= std::ssize(data);
  if (missing_bytes_ == 0) {
    pad();
    ++current_;
    missing_bytes_ = current_ < tensors_.size() ? tensors_[current_].bytes() : 0;
  }
}

void GgufWriter::commit() {
  require(current_ == tensors_.size(),
          fmt::format("{}: {} bytes of tensor {} are missing", file_.path().string(), missing_bytes_, current_));
  file_.commit();
}

void GgufWriter::write(std::span<const std::byte> data) {
  hasher_.update(data);
  file_.append(data);
}

void GgufWriter::pad() {
  constexpr std::array<std::byte, alignment> zeros{};
  write(std::span(zeros).first(static_cast<std::size_t>(aligned(file_.bytes()) - file_.bytes())));
}

}  // namespace gptqd::io
