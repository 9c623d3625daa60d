#include "kernels/base/error.hpp"

#include <new>

namespace gptqd {

namespace {

std::string_view short_name(std::string_view path) {
  // Everything below the repository's root is named from there; two components say enough and carry no build path.
  const auto last = path.rfind('/');
  if (last == std::string_view::npos || last == 0) {
    return path;
  }
  const auto before = path.rfind('/', last - 1);
  return before == std::string_view::npos ? path : path.substr(before + 1);
}

std::string line(std::string_view text, const SourceLocation& location) {
  return fmt::format("{} [{}:{}]", text, short_name(location.file), location.line);
}

}  // namespace

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::usage:
      return 64;
    case ErrorKind::input:
      return 65;
    case ErrorKind::io:
      return 74;
    case ErrorKind::stopped:
      return 75;
    case ErrorKind::no_gain:
      return 69;
    case ErrorKind::not_built:
      return 64;
    case ErrorKind::internal:
      break;
  }
  return 70;
}

Error::Error(ErrorKind kind, std::string message, SourceLocation location)
    : kind_(kind), message_(std::move(message)), what_(line(message_, location)) {}

void Error::add_context(std::string_view context, SourceLocation location) {
  contexts_.insert(contexts_.begin(), fmt::format("while {}", context));
  what_ = line(contexts_.front(), location) + "\n" + what_;
}

Error to_error(const std::exception& error, SourceLocation location) {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr
             ? Error(ErrorKind::internal,
                     "out of memory; use more ranks, fewer --samples, or a machine with more memory", location)
             : Error(ErrorKind::internal, error.what(), location);
}

Error lost_device(std::string_view device, std::string_view cause, SourceLocation location) {
  return Error(
      ErrorKind::internal,
      fmt::format("{} is lost to this process: {}; run the same command again, finished blocks are kept; if it "
                  "is lost again, look for its faults in the node's system log (Xid in dmesg) and nvidia-smi",
                  device, cause),
      location);
}

std::string Error::one_line() const {
  std::string text;
  for (const auto& context : contexts_) {
    text += context + ": ";
  }
  return text + message_;
}

}  // namespace gptqd
