/// @file Fuzzes tokenizer.json: any bytes give a tokenizer that encodes and decodes, or an input error, nothing else.
#include "io/tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "io/json_file.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace {

void expect(bool condition) {
  if (!condition) {
    std::abort();
  }
}

}  // namespace

// The file ends at the first zero byte; what follows is the text.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(input.find('\0'), size);
  const auto text = input.substr(std::min(end + 1, size));
  try {
    const auto tokenizer = gptqd::io::tokenizer_from_json(gptqd::io::parse_json(input.substr(0, end), "fuzz"), "fuzz");
    const auto ids = tokenizer->encode(text, gptqd::io::SpecialTokens::add);
    expect(std::all_of(ids.begin(), ids.end(), [&](std::int32_t id) {
      return id >= 0 && id < tokenizer->vocab_size() && !tokenizer->token(id).empty();
    }));
    expect(tokenizer->encode(text, gptqd::io::SpecialTokens::add) == ids);  // now from the cache
    expect(gptqd::io::is_valid_utf8(tokenizer->decode(ids, false)));
    tokenizer->decode(ids, true);
  } catch (const gptqd::Error& error) {
    expect(error.kind() == gptqd::ErrorKind::input);
  }
  return 0;
}
