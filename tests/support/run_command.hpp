#pragma once
/// @file Programs that tests start, wait for, and leave nothing of.
#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/paths.hpp"

namespace gptqd::test {

struct CommandOptions {
  std::filesystem::path folder;                         ///< working directory; empty: the test's own
  std::map<std::string, std::string> environment = {};  ///< beside the test's own
};

/// A program under way, with all processes that it starts. What is left of them is killed when the object goes.
class Command {
 public:
  /// @param words  program (looked up in PATH) and arguments
  explicit Command(const std::vector<std::string>& words, const CommandOptions& options = {});
  ~Command();
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  /// Exit status (128 + signal where one ended it), or nothing when it goes on after `seconds`.
  std::optional<int> wait(double seconds);
  /// What it has written so far.
  std::string out() const;
  std::string err() const;
  /// It and the processes it started that are alive.
  std::vector<pid_t> processes() const;
  pid_t pid() const { return pid_; }

 private:
  TemporaryFolder folder_;
  std::string token_;  ///< in the environment of all its processes
  pid_t pid_ = -1;
  std::optional<int> status_;
};

struct CommandResult {
  int code = -1;
  std::string out;
  std::string err;
  double seconds = 0;
};

/// Runs a program to its end. @throws Error (internal) when it takes longer than `limit_seconds`
CommandResult run_command(const std::vector<std::string>& words, const CommandOptions& options = {},
                          double limit_seconds = 110);

/// Polls `condition` until it holds or `seconds` have passed; whether it holds.
bool becomes_true(double seconds, const std::function<bool()>& condition);

/// The whole file; empty where there is none.
std::string read_text(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, std::string_view text);

}  // namespace gptqd::test
