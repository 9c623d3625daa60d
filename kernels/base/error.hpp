#pragma once
/// @file The one exception type of the project, and how context is added to it on the way up.
#include <fmt/format.h>

#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/source_location.hpp"

namespace gptqd {

/// What went wrong, as far as the caller and the exit code are concerned.
enum class ErrorKind {
  usage,      ///< the command line or a configuration file asks for something impossible
  input,      ///< a model, text, shard or artifact is not what it has to be
  internal,   ///< a broken invariant of our own
  io,         ///< the operating system refused a read, write or rename
  stopped,    ///< stopped on a signal, having got further: run again
  no_gain,    ///< stopped on a signal before anything new was finished: running again in this way gains nothing
  not_built,  ///< the build lacks this part (CUDA, NCCL)
};

/// Exit code of the process for an error of this kind (sysexits.h: 64, 65, 69, 70, 74, 75).
int exit_code(ErrorKind kind) noexcept;

/// Carries what we were doing, what we got and expected, and the next step.
///
/// what() prints one line a context, outermost first, the message last:
/// @code
/// while quantizing model.decoder.layers.3.fc1 [pipeline/quantize_run.cpp:71]
/// potrf: leading minor 17 of [4096, 4096] is not positive definite; raise --damping (now 0.01)
/// [kernels/cpu/factor.cpp:40]
/// @endcode
class Error : public std::exception {
 public:
  explicit Error(ErrorKind kind, std::string message, SourceLocation location = SourceLocation::current());

  ErrorKind kind() const noexcept { return kind_; }
  /// The message alone, without contexts and locations: the line for users.
  const std::string& message() const noexcept { return message_; }
  /// "while ..." lines, outermost first, without locations.
  const std::vector<std::string>& contexts() const noexcept { return contexts_; }
  const char* what() const noexcept override { return what_.c_str(); }

  /// Puts a context in front of those that are there.
  void add_context(std::string_view context, SourceLocation location = SourceLocation::current());

  /// "while a: while b: message" in one line, for the final report of a rank.
  std::string one_line() const;

 private:
  ErrorKind kind_;
  std::string message_;
  std::vector<std::string> contexts_;
  std::string what_;
};

/// Another library's exception as one of ours (internal); for std::bad_alloc with a next step.
Error to_error(const std::exception& error, SourceLocation location = SourceLocation::current());

/// A device that fails every call of this process from now on: internal, with a next step.
/// @param device  which, and where; @param cause  what the failed call said
Error lost_device(std::string_view device, std::string_view cause, SourceLocation location = SourceLocation::current());

/// Runs `body`; an Error that leaves it gains the context "while <doing>". Other exceptions become ErrorKind::internal.
template <class Body>
decltype(auto) with_context(std::string_view doing, Body&& body, SourceLocation location = SourceLocation::current()) {
  try {
    return std::forward<Body>(body)();
  } catch (Error& error) {
    error.add_context(doing, location);
    throw;
  } catch (const std::exception& error) {
    Error wrapped = to_error(error, location);
    wrapped.add_context(doing, location);
    throw wrapped;
  }
}

/// Throws ErrorKind::internal unless `condition` holds: for preconditions of our own functions.
inline void require(bool condition, std::string_view message, SourceLocation location = SourceLocation::current()) {
  if (!condition) {
    throw Error(ErrorKind::internal, std::string(message), location);
  }
}

}  // namespace gptqd
