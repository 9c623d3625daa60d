#include "tests/support/run_command.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernels/base/error.hpp"

namespace gptqd::test {

namespace {

using Clock = std::chrono::steady_clock;

/// Processes that have `token` in their environment.
std::vector<pid_t> processes_with(const std::string& token) {
  std::vector<pid_t> found;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    const auto name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") == std::string::npos &&
        read_text(entry.path() / "environ").find(token) != std::string::npos) {
      found.push_back(static_cast<pid_t>(std::stol(name)));
    }
  }
  return found;
}

}  // namespace

Command::Command(const std::vector<std::string>& words, const CommandOptions& options)
    : token_(fmt::format("GPTQD_TEST_COMMAND={}-{}", getpid(), folder_.path().filename().string())) {
  std::vector<std::string> all{"/usr/bin/env"};
  if (!options.folder.empty()) {
    all.push_back("--chdir=" + options.folder.string());
  }
  all.push_back(token_);
  for (const auto& [name, value] : options.environment) {
    all.push_back(name + "=" + value);
  }
  all.insert(all.end(), words.begin(), words.end());
  std::vector<char*> arguments;
  for (auto& word : all) {
    arguments.push_back(word.data());
  }
  arguments.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  constexpr int to_file = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, (folder_ / "out").c_str(), to_file, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, (folder_ / "err").c_str(), to_file, 0600);
  const int failed = posix_spawn(&pid_, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  require(failed == 0, fmt::format("cannot start {}", words.front()));
}

Command::~Command() {
  const auto kill_all = [&] {
    const auto left = processes_with(token_);
    for (const auto process : left) {
      kill(process, SIGKILL);
    }
    return left.empty();
  };
  if (!status_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  // A launcher may have started one more process while its others died.
  becomes_true(10, kill_all);
}

std::optional<int> Command::wait(double seconds) {
  if (!status_) {
    int status = 0;
    if (becomes_true(seconds, [&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) {
      status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }
  return status_;
}

std::string Command::out() const { return read_text(folder_ / "out"); }
std::string Command::err() const { return read_text(folder_ / "err"); }
std::vector<pid_t> Command::processes() const { return processes_with(token_); }

CommandResult run_command(const std::vector<std::string>& words, const CommandOptions& options, double limit_seconds) {
  const auto start = Clock::now();
  Command command(words, options);
  const auto code = command.wait(limit_seconds);
  require(code.has_value(), fmt::format("{} goes on after {} s; it wrote:\n{}{}", fmt::join(words, " "), limit_seconds,
                                        command.out(), command.err()));
  return {.code = *code,
          .out = command.out(),
          .err = command.err(),
          .seconds = std::chrono::duration<double>(Clock::now() - start).count()};
}

bool becomes_true(double seconds, const std::function<bool()>& condition) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (Clock::now() > end) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::string read_text(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace gptqd::test
