#pragma once
/// @file Where in the source a call stands.
namespace gptqd {

/// SourceLocation, which clang before 16 does not have with libstdc++.
struct SourceLocation {
  const char* file = "";
  unsigned line = 0;

  /// As a default argument: the place of the call.
  static constexpr SourceLocation current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace gptqd
