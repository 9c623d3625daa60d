#pragma once
/// @file The fields of a protocol buffer message, as far as a tokenizer.model has to be looked into.
#include <cstdint>
#include <functional>
#include <string_view>

namespace gptqd::io {

/// A field of a message: a number, or bytes (a string or a message).
struct ProtobufField {
  std::uint32_t number = 0;
  bool has_bytes = false;
  std::uint64_t value = 0;  ///< of a varint; 0 for other numbers
  std::string_view bytes{};
};

/// Calls `field` for each field of `message`, in order.
/// @param name  what the message is, for the error
/// @throws Error (input) for what is no message
void for_each_field(std::string_view message, std::string_view name,
                    const std::function<void(const ProtobufField& field)>& field);

}  // namespace gptqd::io
