#include "io/tokenizer/joints.hpp"

#include "io/tokenizer/utf8.hpp"

namespace gptqd::io {

void Joints::add(std::string_view token) {
  if (token.empty()) {
    return;
  }
  char32_t left = code_point_at(token, 0);
  for (auto i = utf8_step(token, 0).length; i < token.size(); i += utf8_step(token, i).length) {
    const char32_t right = code_point_at(token, i);
    if (left < low && right < low) {
      low_pairs_.set(left * low + right);
    } else {
      other_pairs_.insert(key(left, right));
    }
    left = right;
  }
}

}  // namespace gptqd::io
