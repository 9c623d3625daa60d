#include "io/tokenizer/protobuf.hpp"

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

class Reader {
 public:
  Reader(std::string_view message, std::string_view name) : rest_(message), name_(name) {}

  bool at_end() const { return rest_.empty(); }

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    fail();
  }

  std::string_view take(std::uint64_t length) {
    if (length > rest_.size()) {
      fail();
    }
    const auto taken = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return taken;
  }

  [[noreturn]] void fail() const {
    throw Error(ErrorKind::input, fmt::format("{} is damaged: a field of the protocol buffer message is cut or has an "
                                              "unknown type; copy the file again",
                                              name_));
  }

 private:
  std::string_view rest_;
  std::string_view name_;
};

}  // namespace

void for_each_field(std::string_view message, std::string_view name,
                    const std::function<void(const ProtobufField& field)>& field) {
  enum : std::uint64_t { varint = 0, eight_bytes = 1, bytes = 2, four_bytes = 5 };
  Reader reader(message, name);
  while (!reader.at_end()) {
    const auto key = reader.varint();
    ProtobufField found{.number = static_cast<std::uint32_t>(key >> 3)};
    switch (key & 7) {
      case varint:
        found.value = reader.varint();
        break;
      case eight_bytes:
        reader.take(8);
        break;
      case bytes:
        found.has_bytes = true;
        found.bytes = reader.take(reader.varint());
        break;
      case four_bytes:
        reader.take(4);
        break;
      default:
        reader.fail();
    }
    field(found);
  }
}

}  // namespace gptqd::io
