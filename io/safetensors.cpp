#include "io/safetensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "kernels/base/error.hpp"

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is read as it lies");

namespace gptqd::io {

namespace {

constexpr std::int64_t prefix_bytes = 8;
constexpr std::size_t most_extents = 64;

/// A name from a file for a message: bounded.
std::string_view shortened(std::string_view text) { return text.substr(0, 200); }

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

/// Reads the header's JSON event by event: nothing but tensors is ever held, and each offence is named where it occurs.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(std::string_view file_name) : file_name_(file_name) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::outside:
        state_ = State::file;
        return true;
      case State::entry:
        state_ = name_ == "__metadata__" ? State::metadata : State::tensor;
        tensor_ = {};
        has_dtype_ = has_shape_ = false;
        offsets_.clear();
        return true;
      default:
        fail(fmt::format("expected {}, got an object", expected()));
    }
  }

  bool key(std::string& text) override {
    if (state_ == State::file) {
      name_ = text;
      if (!names_.insert(text).second) {
        fail("the name occurs twice");
      }
      state_ = State::entry;
    } else if (state_ == State::metadata) {
      metadata_key_ = text;
    } else if (text == "dtype" && !has_dtype_) {
      state_ = State::dtype;
    } else if (text == "shape" && !has_shape_) {
      state_ = State::shape;
    } else if (text == "data_offsets" && offsets_.empty()) {
      state_ = State::offsets;
    } else {
      fail(fmt::format("unexpected or repeated key \"{}\"; a tensor has dtype, shape and data_offsets",
                       shortened(text)));
    }
    return true;
  }

  bool end_object() override {
    switch (state_) {
      case State::tensor:
        finish_tensor();
        state_ = State::file;
        return true;
      case State::metadata:
        state_ = State::file;
        return true;
      default:
        state_ = State::outside;
        return true;
    }
  }

  bool start_array(std::size_t) override {
    if (state_ == State::shape) {
      state_ = State::shape_array;
    } else if (state_ == State::offsets) {
      state_ = State::offsets_array;
    } else {
      fail(fmt::format("expected {}, got an array", expected()));
    }
    return true;
  }

  bool end_array() override {
    if (state_ == State::shape_array) {
      has_shape_ = true;
    } else if (offsets_.size() != 2) {
      fail(fmt::format("data_offsets has {} numbers, expected [begin, end]", offsets_.size()));
    }
    state_ = State::tensor;
    return true;
  }

  bool string(std::string& text) override {
    if (state_ == State::metadata) {
      header_.metadata[metadata_key_] = text;
      return true;
    }
    if (state_ != State::dtype) {
      fail(fmt::format("expected {}, got the string \"{}\"", expected(), shortened(text)));
    }
    const auto dtype = dtype_from_name(text);
    if (!dtype) {
      fail(
          fmt::format("unknown dtype \"{}\"; known are F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL",
                      shortened(text)));
    }
    tensor_.dtype = *dtype;
    has_dtype_ = true;
    state_ = State::tensor;
    return true;
  }

  bool number_unsigned(std::uint64_t value) override {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail(fmt::format("expected {}, got {}", expected(), value));
    }
    if (state_ == State::shape_array) {
      if (tensor_.shape.size() == most_extents) {
        fail(fmt::format("shape has more than {} dimensions", most_extents));
      }
      tensor_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == State::offsets_array) {
      if (offsets_.size() == 2) {
        fail("data_offsets has more than 2 numbers, expected [begin, end]");
      }
      offsets_.push_back(static_cast<std::int64_t>(value));
    } else {
      fail(fmt::format("expected {}, got {}", expected(), value));
    }
    return true;
  }

  bool number_integer(std::int64_t value) override { fail(fmt::format("expected {}, got {}", expected(), value)); }
  bool number_float(double, const std::string& text) override {
    fail(fmt::format("expected {}, got {}", expected(), shortened(text)));
  }
  bool boolean(bool value) override { fail(fmt::format("expected {}, got {}", expected(), value)); }
  bool null() override { fail(fmt::format("expected {}, got null", expected())); }
  bool binary(nlohmann::json::binary_t&) override { fail("expected JSON, got binary data"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw Error(ErrorKind::input,
                fmt::format("{}: the header is not valid JSON at byte {} of {}; the file is damaged or no "
                            "safetensors file",
                            file_name_, position, header_bytes_));
  }

  void set_header_bytes(std::size_t bytes) { header_bytes_ = bytes; }

 private:
  enum class State { outside, file, entry, metadata, tensor, dtype, shape, shape_array, offsets, offsets_array };

  std::string_view expected() const {
    switch (state_) {
      case State::entry:
        return "an object";
      case State::metadata:
        return "a string";
      case State::dtype:
        return "the name of a dtype";
      case State::shape:
        return "an array of extents";
      case State::shape_array:
        return "extents that are non-negative integers of 63 bits";
      case State::offsets:
        return "data_offsets as [begin, end]";
      case State::offsets_array:
        return "data_offsets that are non-negative integers of 63 bits";
      default:
        return "an object of tensors";
    }
  }

  [[noreturn]] void fail(const std::string& offence) const {
    if (name_.empty()) {
      throw Error(ErrorKind::input, fmt::format("{}: safetensors header: {}", file_name_, offence));
    }
    throw Error(ErrorKind::input,
                fmt::format("{}: tensor \"{}\" in the safetensors header: {}", file_name_, shortened(name_), offence));
  }

  void finish_tensor() {
    if (!has_dtype_ || !has_shape_ || offsets_.empty()) {
      fail(fmt::format("{} is missing", !has_dtype_ ? "dtype" : !has_shape_ ? "shape" : "data_offsets"));
    }
    if (offsets_[1] < offsets_[0]) {
      fail(fmt::format("data_offsets [{}, {}] end before they begin", offsets_[0], offsets_[1]));
    }
    const auto bytes = dense_bytes(tensor_.shape, tensor_.dtype);
    if (!bytes) {
      fail(fmt::format("shape {} overflows 63 bits", shape_text(tensor_.shape)));
    }
    if (*bytes != offsets_[1] - offsets_[0]) {
      fail(fmt::format("{} {} has {} bytes, but data_offsets [{}, {}] hold {}", name_of(tensor_.dtype),
                       shape_text(tensor_.shape), *bytes, offsets_[0], offsets_[1], offsets_[1] - offsets_[0]));
    }
    tensor_.name = name_;
    tensor_.bytes = *bytes;
    tensor_.offset = offsets_[0];
    header_.tensors.push_back(std::move(tensor_));
  }

  std::string_view file_name_;
  std::size_t header_bytes_ = 0;
  SafetensorsHeader header_;
  State state_ = State::outside;
  std::unordered_set<std::string> names_;
  std::string name_;
  std::string metadata_key_;
  TensorInfo tensor_;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  std::vector<std::int64_t> offsets_;
};

void check_layout(const std::vector<TensorInfo>& tensors, std::int64_t data_bytes, std::string_view file_name) {
  std::int64_t end = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& tensor = tensors[i];
    if (tensor.offset > end) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: tensor \"{}\" begins at byte {} of the data, expected {}: the format allows no holes",
                      file_name, shortened(tensor.name), tensor.offset, end));
    }
    if (tensor.offset < end) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: tensors \"{}\" and \"{}\" overlap: the second begins at byte {}, the first ends at {}",
                      file_name, shortened(tensors[i - 1].name), shortened(tensor.name), tensor.offset, end));
    }
    end = tensor.offset + tensor.bytes;
    if (end > data_bytes) {
      throw Error(
          ErrorKind::input,
          fmt::format(
              "{}: tensor \"{}\" ends at byte {} of the data, but the file holds {}: it is truncated; copy it again",
              file_name, shortened(tensor.name), end, data_bytes));
    }
  }
  if (end != data_bytes) {
    throw Error(ErrorKind::input,
                fmt::format("{}: the tensors end at byte {} of the data, but the file holds {}: it has bytes too many",
                            file_name, end, data_bytes));
  }
}

[[noreturn]] void fail_unknown(std::string_view name, const std::vector<TensorInfo>& tensors, std::string_view where) {
  std::vector<std::string> names;
  for (const auto& tensor : tensors) {
    names.push_back(tensor.name);
  }
  throw Error(ErrorKind::input, fmt::format("{}: no tensor \"{}\"; the closest names are {}", where, name,
                                            fmt::join(closest_names(name, names), ", ")));
}

std::string header_text(const std::vector<TensorDeclaration>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    header["__metadata__"] = metadata;
  }
  std::unordered_set<std::string_view> names;
  std::int64_t offset = 0;
  // emplace_back on the object's own vector: looking up each key anew would take quadratic time.
  auto& entries = header.get_ref<nlohmann::ordered_json::object_t&>();
  for (const auto& tensor : tensors) {
    require(names.insert(tensor.name).second && tensor.name != "__metadata__",
            fmt::format("safetensors: tensor \"{}\" is declared twice or reserved", tensor.name));
    const std::int64_t end = offset + tensor.bytes();
    entries.emplace_back(tensor.name, nlohmann::ordered_json{{"dtype", std::string(name_of(tensor.dtype))},
                                                             {"shape", tensor.shape},
                                                             {"data_offsets", {offset, end}}});
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> header_json, std::int64_t data_bytes,
                                           std::string_view file_name) {
  if (header_json.empty() || header_json.front() != std::byte{'{'}) {
    throw Error(ErrorKind::input,
                fmt::format("{}: the header does not begin with \"{{\"; it is no safetensors file", file_name));
  }
  HeaderReader reader(file_name);
  reader.set_header_bytes(header_json.size());
  const auto* text = reinterpret_cast<const char*>(header_json.data());
  nlohmann::json::sax_parse(text, text + header_json.size(), &reader);
  SafetensorsHeader header = reader.take();
  // Tensors without elements stand in front of the one that begins at the same place.
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  check_layout(header.tensors, data_bytes, file_name);
  return header;
}

std::int64_t safetensors_header_bytes(std::span<const std::byte, 8> prefix, std::int64_t file_bytes,
                                      std::string_view file_name) {
  std::uint64_t length = 0;
  std::memcpy(&length, prefix.data(), prefix.size());
  if (length > static_cast<std::uint64_t>(max_safetensors_header_bytes)) {
    throw Error(ErrorKind::input,
                fmt::format("{}: the header would have {} bytes, more than the {} allowed; it is no safetensors file",
                            file_name, length, max_safetensors_header_bytes));
  }
  if (static_cast<std::int64_t>(length) > file_bytes - prefix_bytes) {
    throw Error(
        ErrorKind::input,
        fmt::format(
            "{}: the header has {} bytes, but the file holds {} after its first 8: it is truncated; copy it again",
            file_name, length, file_bytes - prefix_bytes));
  }
  return static_cast<std::int64_t>(length);
}

SafetensorsHeader parse_safetensors_image(std::span<const std::byte> file, std::string_view file_name) {
  if (std::ssize(file) < prefix_bytes) {
    throw Error(ErrorKind::input,
                fmt::format("{}: {} bytes, expected at least 8 (the header's length); it is no safetensors file",
                            file_name, file.size()));
  }
  const std::int64_t header_bytes = safetensors_header_bytes(file.first<8>(), std::ssize(file), file_name);
  return parse_safetensors_header(file.subspan(prefix_bytes, static_cast<std::size_t>(header_bytes)),
                                  std::ssize(file) - prefix_bytes - header_bytes, file_name);
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string name = path.string();
  if (file_.size() < prefix_bytes) {
    throw Error(ErrorKind::input,
                fmt::format("{}: {} bytes, expected at least 8 (the header's length); it is no safetensors file", name,
                            file_.size()));
  }
  std::array<std::byte, 8> prefix{};
  file_.read_exactly(0, prefix);
  const std::int64_t header_bytes = safetensors_header_bytes(prefix, file_.size(), name);
  std::vector<std::byte> header(static_cast<std::size_t>(header_bytes));
  file_.read_exactly(prefix_bytes, header);
  const std::int64_t data_begin = prefix_bytes + header_bytes;
  header_ = parse_safetensors_header(header, file_.size() - data_begin, name);
  header_hash_ = xxh3_128_hex(header);
  for (auto& tensor : header_.tensors) {
    tensor.offset += data_begin;
    by_name_.emplace(tensor.name, &tensor);
  }
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorInfo& SafetensorsFile::at(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    fail_unknown(name, header_.tensors, path().string());
  }
  return *info;
}

void SafetensorsFile::read(const TensorInfo& info, std::span<std::byte> out) const {
  require(std::ssize(out) == info.bytes, "safetensors: the buffer's size differs from the tensor's");
  read_range(info, 0, out);
}

void SafetensorsFile::read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const {
  require(offset >= 0 && offset <= info.bytes && std::ssize(out) <= info.bytes - offset,
          "safetensors: a range outside the tensor");
  file_.read_exactly(info.offset + offset, out);
}

std::int64_t TensorDeclaration::bytes() const {
  for (const auto extent : shape) {
    require(extent >= 0, fmt::format("safetensors: tensor \"{}\" has the negative extent {}", name, extent));
  }
  const auto result = dense_bytes(shape, dtype);
  require(result.has_value(), fmt::format("safetensors: the shape of tensor \"{}\" overflows 63 bits", name));
  return *result;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorDeclaration> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : tensors_(std::move(tensors)), file_(path) {
  const std::string header = header_text(tensors_, metadata);
  const std::uint64_t length = header.size();
  for (const auto part : {std::as_bytes(std::span(&length, 1)), std::as_bytes(std::span(header))}) {
    hasher_.update(part);
    file_.append(part);
  }
  missing_bytes_ = tensors_.empty() ? 0 : tensors_.front().bytes();
  skip_complete();
}

void SafetensorsWriter::append(std::string_view name, std::span<const std::byte> data) {
  if (data.empty()) {
    return;
  }
  const std::string_view due =
      current_ < tensors_.size() ? std::string_view(tensors_[current_].name) : "the end of the file";
  require(name == due, fmt::format("{}: got data of tensor \"{}\", expected {}", file_.path().string(), name, due));
  require(std::ssize(data) <= missing_bytes_, fmt::format("{}: tensor \"{}\": got {} bytes, expected {} more",
                                                          file_.path().string(), name, data.size(), missing_bytes_));
  hasher_.update(data);
  file_.append(data);
  missing_bytes_ -= std::ssize(data);
  skip_complete();
}

void SafetensorsWriter::commit() {
  require(current_ == tensors_.size(),
          fmt::format("{}: {} bytes of tensor \"{}\" are missing", file_.path().string(), missing_bytes_,
                      current_ < tensors_.size() ? tensors_[current_].name : ""));
  file_.commit();
}

void SafetensorsWriter::skip_complete() {
  while (current_ < tensors_.size() && missing_bytes_ == 0) {
    ++current_;
    missing_bytes_ = current_ < tensors_.size() ? tensors_[current_].bytes() : 0;
  }
}

}  // namespace gptqd::io
