#include "io/tokenizer/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::uint64_t least_limit_of_steps = 10'000'000;
constexpr std::uint64_t steps_per_byte = 4;  // going back over a run of blanks takes one
constexpr std::uint32_t most_heap_kib = 512 << 10;

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
template <class T>
using Pcre2Pointer = std::unique_ptr<T, FreePcre2>;

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

template <class T>
Pcre2Pointer<T> made(T* object) {
  if (object == nullptr) {
    throw std::bad_alloc();
  }
  return Pcre2Pointer<T>(object);
}

/// What searching one text needs.
struct Search {
  explicit Search(std::string_view text)
      : data(made(pcre2_match_data_create(1, nullptr))), limits(made(pcre2_match_context_create(nullptr))) {
    const auto steps = least_limit_of_steps + steps_per_byte * text.size();
    pcre2_set_match_limit(limits.get(), static_cast<std::uint32_t>(
                                            std::min<std::uint64_t>(steps, std::numeric_limits<std::uint32_t>::max())));
    pcre2_set_heap_limit(limits.get(), most_heap_kib);
  }

  Pcre2Pointer<pcre2_match_data> data;
  Pcre2Pointer<pcre2_match_context> limits;
};

}  // namespace

struct Regex::Compiled {
  std::string name;
  Pcre2Pointer<pcre2_code> code;
  bool has_machine_code = false;

  /// Looks for the next match from `position` on; whether there is one. Its bounds are in the ovector of `search`.
  bool find(std::string_view text, std::size_t position, const Search& search) const {
    const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int status = PCRE2_ERROR_JIT_STACKLIMIT;
    if (has_machine_code) {
      status = pcre2_jit_match(code.get(), subject, text.size(), position, 0, search.data.get(), search.limits.get());
    }
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) {  // the same result, with the heap for a stack
      // Without NO_UTF_CHECK every call would walk through the whole text.
      status = pcre2_match(code.get(), subject, text.size(), position, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                           search.data.get(), search.limits.get());
    }
    if (status < 0 && status != PCRE2_ERROR_NOMATCH) {
      throw Error(ErrorKind::input,
                  fmt::format("regular expression {}: PCRE2 gives up at byte {} of a text of {} bytes: {}", name,
                              position, text.size(), message_of(status)));
    }
    return status >= 0;
  }
};

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

Regex::Regex(const std::string& pattern, std::string name) : compiled_(std::make_unique<Compiled>()) {
  compiled_->name = name.empty() ? pattern : std::move(name);
  int error = 0;
  PCRE2_SIZE position = 0;
  compiled_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                      PCRE2_UTF | PCRE2_UCP, &error, &position, nullptr));
  if (compiled_->code == nullptr) {
    throw Error(ErrorKind::input, fmt::format("regular expression {}: PCRE2 refuses it at byte {}: {}", compiled_->name,
                                              position, message_of(error)));
  }
  // Where the processor has no JIT, matching goes on with the interpreter and the same results.
  compiled_->has_machine_code = pcre2_jit_compile(compiled_->code.get(), PCRE2_JIT_COMPLETE) == 0;
}

void Regex::for_each_match(std::string_view text, const OnMatch& match) const {
  const Search search(text);
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(search.data.get());
  std::size_t position = 0;
  std::optional<std::size_t> last_end;
  while (position <= text.size() && compiled_->find(text, position, search)) {
    const auto begin = bounds[0];
    const auto end = bounds[1];
    if (begin == end && last_end == end) {
      position += position < text.size() ? utf8_step(text, position).length : 1;
      continue;
    }
    position = end;
    last_end = end;
    match(begin, end);
  }
}

bool Regex::may_match_empty() const {
  std::uint32_t result = 0;
  pcre2_pattern_info(compiled_->code.get(), PCRE2_INFO_MATCHEMPTY, &result);
  return result != 0;
}

std::string Regex::replaced(std::string_view text, std::string_view content) const {
  std::string result;
  result.reserve(text.size());
  std::size_t taken = 0;
  for_each_match(text, [&](std::size_t begin, std::size_t end) {
    result.append(text, taken, begin - taken).append(content);
    taken = end;
  });
  return result.append(text, taken);
}

bool Regex::matches(std::string_view text) const { return compiled_->find(text, 0, Search(text)); }

}  // namespace gptqd::io
