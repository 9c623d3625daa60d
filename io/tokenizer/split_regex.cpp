#include "io/tokenizer/split_regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>
#include <new>
#include <utility>

#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
template <class T>
using Pcre2Pointer = std::unique_ptr<T, FreePcre2>;

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

Pcre2Pointer<pcre2_match_data> make_match_data() {
  Pcre2Pointer<pcre2_match_data> data(pcre2_match_data_create(1, nullptr));
  if (data == nullptr) {
    throw std::bad_alloc();
  }
  return data;
}

}  // namespace

struct SplitRegex::Compiled {
  std::string pattern;
  Pcre2Pointer<pcre2_code> code;

  /// Looks for the next match from `position` on; whether there is one. Its bounds are in the ovector of `match`.
  bool find(std::string_view text, std::size_t position, pcre2_match_data* match) const {
    const auto run = [&](std::uint32_t options) {
      // Without NO_UTF_CHECK every call would walk through the whole text.
      return pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), position,
                         PCRE2_NO_UTF_CHECK | options, match, nullptr);
    };
    int status = run(0);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) {
      status = run(PCRE2_NO_JIT);  // the same result, with the heap for a stack
    }
    if (status < 0 && status != PCRE2_ERROR_NOMATCH) {
      throw Error(ErrorKind::input,
                  fmt::format("regular expression {}: PCRE2 gives up at byte {} of a text of {} bytes: {}", pattern,
                              position, text.size(), message_of(status)));
    }
    return status >= 0;
  }
};

SplitRegex::~SplitRegex() = default;
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;

SplitRegex::SplitRegex(std::string pattern) : compiled_(std::make_unique<Compiled>()) {
  compiled_->pattern = std::move(pattern);
  const auto& text = compiled_->pattern;
  int error = 0;
  PCRE2_SIZE position = 0;
  compiled_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP,
                                      &error, &position, nullptr));
  if (compiled_->code == nullptr) {
    throw Error(ErrorKind::input, fmt::format("regular expression {}: PCRE2 refuses it at byte {}: {}", text, position,
                                              message_of(error)));
  }
  // Where the processor has no JIT, matching goes on with the interpreter and the same results.
  pcre2_jit_compile(compiled_->code.get(), PCRE2_JIT_COMPLETE);
}

void SplitRegex::for_each_piece(std::string_view text, const Piece& piece) const {
  const auto match = make_match_data();
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
  std::size_t given = 0;     // what piece() has got
  std::size_t position = 0;  // where to look for the next match
  while (position < text.size() && compiled_->find(text, position, match.get())) {
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (begin >= end) {
      position = end + (end < text.size() ? utf8_step(text, end).length : 1);
      continue;
    }
    if (given < begin) {
      piece(text.substr(given, begin - given));
    }
    piece(text.substr(begin, end - begin));
    given = position = end;
  }
  if (given < text.size()) {
    piece(text.substr(given));
  }
}

bool SplitRegex::matches(std::string_view text) const { return compiled_->find(text, 0, make_match_data().get()); }

}  // namespace gptqd::io
