#pragma once
/// @file Text of an untrusted file in a message.
#include <string>
#include <string_view>

namespace gptqd::io {

/// The first 200 bytes of `text` in quotes and in ASCII: control characters and what is not UTF-8 are escaped.
std::string quoted_text(std::string_view text);

}  // namespace gptqd::io
