#pragma once
/// @file Makes gzip data for tests.
#include <zlib.h>

#include <string>
#include <string_view>

#include "kernels/base/error.hpp"

namespace gptqd::io::test {

/// One gzip member.
inline std::string gzip(std::string_view text) {
  z_stream state{};
  require(deflateInit2(&state, Z_BEST_SPEED, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "zlib");
  std::string result(deflateBound(&state, text.size()) + 32, '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(result.data());
  state.avail_out = static_cast<uInt>(result.size());
  require(deflate(&state, Z_FINISH) == Z_STREAM_END, "zlib");
  result.resize(state.total_out);
  deflateEnd(&state);
  return result;
}

}  // namespace gptqd::io::test
