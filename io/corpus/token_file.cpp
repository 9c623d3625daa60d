#include "io/corpus/token_file.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/safetensors.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

void check_shape(const std::string& what, const std::vector<std::int64_t>& shape) {
  if (shape.size() != 2 || shape[0] <= 0 || shape[1] <= 0) {
    throw Error(ErrorKind::input,
                fmt::format("{} is [{}], expected [samples, seqlen], both at least 1{}", what, fmt::join(shape, ", "),
                            shape.size() == 1 ? "; cut the stream into samples and store them as rows" : ""));
  }
  if (shape[1] > most_tokens / shape[0]) {
    throw Error(ErrorKind::input, fmt::format("{} is [{}], more than {} tokens; store fewer samples", what,
                                              fmt::join(shape, ", "), most_tokens));
  }
}

/// @param read  fills memory with the elements as they are stored
template <class Stored, class Read>
TokenWindows to_windows(const std::string& what, const std::vector<std::int64_t>& shape, Read&& read) {
  check_shape(what, shape);
  std::vector<Stored> stored(index(shape[0] * shape[1]));
  read(std::as_writable_bytes(std::span(stored)));
  TokenWindows windows{.samples = shape[0], .seqlen = shape[1], .ids = std::vector<std::int32_t>(stored.size())};
  for (std::size_t i = 0; i < stored.size(); ++i) {
    if (!std::in_range<std::int32_t>(stored[i]) || stored[i] < 0) {
      const auto place = static_cast<std::int64_t>(i);
      throw Error(ErrorKind::input, fmt::format("{}: element [{}, {}] is {}, which is no token id", what,
                                                place / shape[1], place % shape[1], stored[i]));
    }
    windows.ids[i] = static_cast<std::int32_t>(stored[i]);
  }
  return windows;
}

TokenWindows read_safetensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const TensorInfo* tensor = file.find("input_ids");
  if (tensor == nullptr) {
    std::string names;
    for (const auto& other : file.tensors()) {
      if (names.size() < 200) {
        names += fmt::format("{}{}", names.empty() ? "" : ", ", other.name);
      }
    }
    throw Error(ErrorKind::input,
                fmt::format("token file {}: has no tensor input_ids (I32 or I64 [samples, seqlen]); it has {}",
                            path.string(), names.empty() ? "none" : names));
  }
  const auto what = fmt::format("token file {}: input_ids", path.string());
  const auto read = [&](std::span<std::byte> out) { file.read(*tensor, out); };
  switch (tensor->dtype) {
    case DType::i32:
      return to_windows<std::int32_t>(what, tensor->shape, read);
    case DType::i64:
      return to_windows<std::int64_t>(what, tensor->shape, read);
    default:
      throw Error(ErrorKind::input, fmt::format("{} is {} [{}], expected I32 or I64 [samples, seqlen]", what,
                                                name_of(tensor->dtype), fmt::join(tensor->shape, ", ")));
  }
}

/// The literal of a Python dictionary that numpy writes: {'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }.
class NpyDictionary {
 public:
  NpyDictionary(std::string_view text, std::string_view name) : text_(text), name_(name) {}

  NpyHeader parse() {
    std::optional<std::string> descr;
    std::optional<bool> fortran_order;
    std::optional<std::vector<std::int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const auto key = quoted();
      expect(':');
      if (key == "descr" && !descr) {
        descr = quoted();
      } else if (key == "fortran_order" && !fortran_order) {
        fortran_order = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        fail(fmt::format("an unexpected or repeated key '{}'", key));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (place_ != text_.size()) {
      fail("text behind the dictionary");
    }
    if (!descr || !fortran_order || !shape) {
      fail("no descr, fortran_order or shape");
    }
    return {.descr = std::move(*descr), .fortran_order = *fortran_order, .shape = std::move(*shape)};
  }

 private:
  void skip_blanks() { place_ = std::min(text_.find_first_not_of(" \n", place_), text_.size()); }

  bool accept(char c) {
    skip_blanks();
    if (place_ < text_.size() && text_[place_] == c) {
      ++place_;
      return true;
    }
    return false;
  }

  void expect(char c) {
    if (!accept(c)) {
      fail(fmt::format("no '{}' where one is due", c));
    }
  }

  std::string quoted() {
    skip_blanks();
    const char quote = place_ < text_.size() ? text_[place_] : '\0';
    const auto end = quote == '\'' || quote == '"' ? text_.find(quote, place_ + 1) : std::string_view::npos;
    if (end == std::string_view::npos) {
      fail("no quoted text where one is due (a structured type is no token id)");
    }
    const auto start = std::exchange(place_, end + 1) + 1;
    return std::string(text_.substr(start, end - start));
  }

  bool boolean() {
    skip_blanks();
    for (const auto& [word, value] : {std::pair(std::string_view("True"), true), {"False", false}}) {
      if (text_.substr(place_).starts_with(word)) {
        place_ += word.size();
        return value;
      }
    }
    fail("neither True nor False");
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    while (!accept(')')) {
      skip_blanks();
      std::int64_t value = 0;
      const auto* first = text_.data() + place_;
      const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value);
      if (error != std::errc() || value < 0) {
        fail("an extent of the shape that is no number");
      }
      place_ += static_cast<std::size_t>(end - first);
      values.push_back(value);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return values;
  }

  [[noreturn]] void fail(const std::string& found) const {
    throw Error(ErrorKind::input, fmt::format("{}: its .npy header has {} at byte {}; save the array again with "
                                              "numpy.save",
                                              name_, found, place_));
  }

  std::string_view text_;
  std::string_view name_;
  std::size_t place_ = 0;
};

/// An unsigned number, little-endian.
std::int64_t little_endian(std::string_view bytes) {
  std::int64_t value = 0;
  for (auto byte = bytes.rbegin(); byte != bytes.rend(); ++byte) {
    value = value << 8 | static_cast<unsigned char>(*byte);
  }
  return value;
}

TokenWindows read_npy(const std::filesystem::path& path) {
  const File file(path);
  std::string start(index(std::min(file.size(), max_npy_header_bytes)), '\0');
  file.read_exactly(0, std::as_writable_bytes(std::span(start)));
  const auto header = parse_npy_header(start, path.string());
  const auto what = fmt::format("token file {}: its array", path.string());
  if (header.fortran_order && header.shape.size() > 1) {
    throw Error(ErrorKind::input,
                fmt::format("{} is in Fortran order; save numpy.ascontiguousarray(it) instead", what));
  }
  const auto read_as = [&]<class Stored>(Stored) {
    check_shape(what, header.shape);
    const auto bytes = header.shape[0] * header.shape[1] * static_cast<std::int64_t>(sizeof(Stored));
    if (file.size() - header.data_offset != bytes) {  // before anything is allocated
      throw Error(ErrorKind::input,
                  fmt::format("{} [{}] of {} has {} bytes, the file holds {}: it is {}", what,
                              fmt::join(header.shape, ", "), header.descr, bytes, file.size() - header.data_offset,
                              file.size() - header.data_offset < bytes ? "truncated" : "damaged"));
    }
    return to_windows<Stored>(what, header.shape,
                              [&](std::span<std::byte> out) { file.read_exactly(header.data_offset, out); });
  };
  if (header.descr == "<i4") {
    return read_as(std::int32_t{});
  }
  if (header.descr == "<i8") {
    return read_as(std::int64_t{});
  }
  if (header.descr == "<u2") {
    return read_as(std::uint16_t{});
  }
  if (header.descr == "<u4") {
    return read_as(std::uint32_t{});
  }
  throw Error(ErrorKind::input, fmt::format("{} is of type {}, expected <i4, <i8, <u2 or <u4; save it as numpy.int32",
                                            what, header.descr));
}

}  // namespace

bool is_token_file(const std::filesystem::path& path) {
  return path.extension() == ".safetensors" || path.extension() == ".npy";
}

TokenWindows read_token_file(const std::filesystem::path& path) {
  return path.extension() == ".npy" ? read_npy(path) : read_safetensors(path);
}

NpyHeader parse_npy_header(std::string_view start_of_file, std::string_view name) {
  constexpr std::string_view magic = "\x93NUMPY";
  const auto fail = [&](const std::string& found) {
    throw Error(ErrorKind::input, fmt::format("{}: {}; save the array with numpy.save", name, found));
  };
  if (!start_of_file.starts_with(magic) || start_of_file.size() < magic.size() + 2) {
    fail("does not begin as an .npy file does");
  }
  const int version = start_of_file[magic.size()];
  if (version < 1 || version > 3) {
    fail(fmt::format("has .npy version {}, expected 1 to 3", version));
  }
  const std::size_t length_place = magic.size() + 2;
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  if (start_of_file.size() < length_place + length_bytes) {
    fail("ends within its .npy header");
  }
  const auto length = little_endian(start_of_file.substr(length_place, length_bytes));
  const auto begin = static_cast<std::int64_t>(length_place + length_bytes);
  if (length > max_npy_header_bytes - begin) {
    fail(fmt::format("has an .npy header of {} bytes, expected a few hundred", length));
  }
  if (std::ssize(start_of_file) < begin + length) {
    fail(fmt::format("ends within its .npy header of {} bytes", length));
  }
  auto header = NpyDictionary(start_of_file.substr(index(begin), index(length)), name).parse();
  header.data_offset = begin + length;
  return header;
}

}  // namespace gptqd::io
