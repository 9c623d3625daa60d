#include "comm/stop_signals.hpp"

#include <array>
#include <atomic>
#include <csignal>
#include <ctime>

#include "kernels/base/error.hpp"

namespace gptqd::comm {

namespace {

constexpr std::int64_t second_in_nanoseconds = 1'000'000'000;
constexpr std::array signals_at_once{SIGTERM, SIGINT, SIGHUP};

static_assert(std::atomic<std::int64_t>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "a signal handler may touch nothing else");
std::atomic<std::int64_t> first_request{0};  ///< when SIGUSR1 came, 0: never
std::atomic<int> immediate_signal{0};        ///< the first that asked to stop at once
std::atomic<bool> listening{false};
struct sigaction earlier[signals_at_once.size()];

std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * second_in_nanoseconds + time.tv_nsec;
}

extern "C" void on_stop_signal(int signal) {
  int none = 0;
  if (signal != SIGUSR1) {
    immediate_signal.compare_exchange_strong(none, signal);
    return;
  }
  std::int64_t first = 0;
  if (!first_request.compare_exchange_strong(first, now()) && now() - first >= second_in_nanoseconds) {
    immediate_signal.compare_exchange_strong(none, signal);
  }
}

struct sigaction handler(void (*function)(int)) {
  struct sigaction action {};
  action.sa_handler = function;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  return action;
}

const char* name_of(int signal) {
  switch (signal) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "a second SIGUSR1";
  }
}

}  // namespace

StopSignals::StopSignals() {
  require(!listening.exchange(true), "stop signals: one object a process");
  first_request = 0;
  immediate_signal = 0;
  const auto action = handler(on_stop_signal);
  sigaction(SIGUSR1, &action, nullptr);
  for (std::size_t i = 0; i < signals_at_once.size(); ++i) {
    sigaction(signals_at_once[i], nullptr, &earlier[i]);
  }
}

StopSignals::~StopSignals() {
  const auto ignore = handler(SIG_IGN);
  sigaction(SIGUSR1, &ignore, nullptr);
  for (std::size_t i = 0; i < signals_at_once.size(); ++i) {
    sigaction(signals_at_once[i], &earlier[i], nullptr);
  }
  listening = false;
}

void StopSignals::listen_to_all() {
  const auto action = handler(on_stop_signal);
  for (std::size_t i = 0; i < signals_at_once.size(); ++i) {
    if (earlier[i].sa_handler != SIG_IGN) {
      sigaction(signals_at_once[i], &action, nullptr);
    }
  }
}

StopRequest StopSignals::requested() {
  if (const int signal = immediate_signal; signal != 0) {
    return {.level = StopLevel::at_once, .cause = name_of(signal)};
  }
  if (first_request != 0) {
    return {.level = StopLevel::orderly, .cause = "SIGUSR1"};
  }
  return {};
}

}  // namespace gptqd::comm
