#include "kernels/base/fault_point.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/base/error.hpp"
#include "kernels/base/launcher_rank.hpp"

namespace gptqd {

namespace {

constexpr std::array<std::string_view, 28> points{
    "start",           "lock.take",     "lock.take-over",  "lock.heartbeat",
    "file.open",       "file.read",     "block.load",      "block.replay",
    "phase",           "block.done",    "file.withdraw",   "file.create",
    "file.write",      "file.written",  "file.fsync",      "file.rename",
    "file.renamed",    "folder.fsync",  "shard.listed",    "snapshot.write",
    "snapshot.remove", "snapshot.read", "merge",           "folder.rename",
    "comm.send",       "comm.receive",  "comm.collective", "end"};

enum class Act { raise, fail, no_memory, hang, slow, error_code, lose_device, hang_device };

struct Action {
  std::string_view name;
  Act act;
  int value = 0;  ///< signal or errno
};

constexpr std::array<Action, 21> actions{Action{"kill", Act::raise, SIGKILL},
                                         Action{"stop", Act::raise, SIGSTOP},
                                         Action{"term", Act::raise, SIGTERM},
                                         Action{"usr1", Act::raise, SIGUSR1},
                                         Action{"throw", Act::fail},
                                         Action{"no-memory", Act::no_memory},
                                         Action{"hang", Act::hang},
                                         Action{"slow", Act::slow},
                                         Action{"lose-device", Act::lose_device},
                                         Action{"hang-device", Act::hang_device},
                                         Action{"enospc", Act::error_code, ENOSPC},
                                         Action{"edquot", Act::error_code, EDQUOT},
                                         Action{"eio", Act::error_code, EIO},
                                         Action{"erofs", Act::error_code, EROFS},
                                         Action{"estale", Act::error_code, ESTALE},
                                         Action{"efbig", Act::error_code, EFBIG},
                                         Action{"einval", Act::error_code, EINVAL},
                                         Action{"enotsup", Act::error_code, ENOTSUP},
                                         Action{"eintr", Act::error_code, EINTR},
                                         Action{"eagain", Act::error_code, EAGAIN},
                                         Action{"eacces", Act::error_code, EACCES}};

struct Fault {
  std::string_view point;
  const Action* action = nullptr;
  std::int64_t count = 1;
  bool from_there_on = false;
  std::atomic<std::int64_t> passages{0};
};

using Faults = std::deque<Fault>;

std::atomic<DeviceFault> fault_of_device{DeviceFault::none};

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  std::vector<std::string_view> names;
  for (const auto& action : actions) {
    names.push_back(action.name);
  }
  throw Error(
      ErrorKind::usage,
      fmt::format("GPTQ_DIST_FAULT \"{}\": {}; expected point[@rank]:action[:count[+]], points: {}; actions: {}", text,
                  why, fmt::join(points, ", "), fmt::join(names, ", ")));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(end + 1);
  }
}

std::optional<std::int64_t> number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0 ? std::optional(value) : std::nullopt;
}

/// Appends the fault that one item asks of this rank, if it does.
void parse(std::string_view item, Faults& faults) {
  const auto words = split(item, ':');
  if (words.size() < 2 || words.size() > 3) {
    refuse(item, fmt::format("{} words between colons", words.size()));
  }
  const auto place = split(words[0], '@');
  const auto* point = std::find(points.begin(), points.end(), place[0]);
  if (point == points.end()) {
    refuse(item, fmt::format("there is no point \"{}\"", place[0]));
  }
  const auto* action =
      std::find_if(actions.begin(), actions.end(), [&](const Action& a) { return a.name == words[1]; });
  if (action == actions.end()) {
    refuse(item, fmt::format("there is no action \"{}\"", words[1]));
  }
  std::string_view count = words.size() == 3 ? words[2] : "1";
  const bool from_there_on = count.ends_with('+');
  count.remove_suffix(from_there_on ? 1 : 0);
  const auto times = number(count);
  const auto rank = place.size() == 2 ? number(place[1]) : std::optional<std::int64_t>(launcher_rank());
  if (place.size() > 2 || !times || *times == 0 || !rank) {
    refuse(item, "rank and count have to be numbers, count at least 1");
  }
  if (*rank == launcher_rank()) {
    auto& fault = faults.emplace_back();
    fault.point = *point;
    fault.action = action;
    fault.count = *times;
    fault.from_there_on = from_there_on;
  }
}

Faults parse_all(std::string_view text) {
  Faults faults;
  if (!text.empty()) {
    for (const auto item : split(text, ',')) {
      parse(item, faults);
    }
  }
  return faults;
}

Faults& faults() {
  static Faults instance = [] {
    const char* text = std::getenv("GPTQ_DIST_FAULT");
    return parse_all(text == nullptr ? "" : text);
  }();
  return instance;
}

int act(const Fault& fault) {
  using namespace std::chrono_literals;
  // In one write, and before anything happens: a killed process says nothing any more.
  const auto line = fmt::format("gptq-dist: rank {}: GPTQ_DIST_FAULT: now {} at {}\n", launcher_rank(),
                                fault.action->name, fault.point);
  const bool told = ::write(STDERR_FILENO, line.data(), line.size()) > 0;
  static_cast<void>(told);
  switch (fault.action->act) {
    case Act::raise:
      // To the process, as a signal from outside: with raise() other threads could go on for a while.
      ::kill(::getpid(), fault.action->value);
      std::this_thread::sleep_for(fault.action->value == SIGKILL || fault.action->value == SIGSTOP ? 1s : 0s);
      return 0;
    case Act::fail:
      throw Error(ErrorKind::internal, fmt::format("GPTQ_DIST_FAULT: thrown at the point {}", fault.point));
    case Act::no_memory:
      throw std::bad_alloc();
    case Act::hang:
      for (;;) {
        std::this_thread::sleep_for(1h);
      }
    case Act::slow:
      std::this_thread::sleep_for(1s);
      return 0;
    case Act::error_code:
      return fault.action->value;
    case Act::lose_device:
      fault_of_device = DeviceFault::lost;
      return 0;
    case Act::hang_device:
      fault_of_device = DeviceFault::hangs;
      return 0;
  }
  return 0;
}

}  // namespace

std::span<const std::string_view> fault_points() { return points; }

int fault_errno(std::string_view point) {
  for (auto& fault : faults()) {
    if (fault.point == point) {
      const auto passage = fault.passages.fetch_add(1) + 1;
      if (passage == fault.count || (fault.from_there_on && passage > fault.count)) {
        if (const int code = act(fault); code != 0) {
          return code;
        }
      }
    }
  }
  return 0;
}

void fault_point(std::string_view point) {
  if (const int code = fault_errno(point); code != 0) {
    throw Error(ErrorKind::io, fmt::format("GPTQ_DIST_FAULT: failed at the point {}: {} (errno {})", point,
                                           std::system_category().message(code), code));
  }
}

void set_faults(std::string_view setting) {
  faults() = parse_all(setting);
  fault_of_device = DeviceFault::none;
}

DeviceFault device_fault() noexcept { return fault_of_device.load(std::memory_order_relaxed); }

std::string describe_faults() {
  std::vector<std::string> texts;
  for (const auto& fault : faults()) {
    texts.push_back(fmt::format("{} at passage {}{} of {}", fault.action->name, fault.count,
                                fault.from_there_on ? " and all later ones" : "", fault.point));
  }
  return fmt::format("{}", fmt::join(texts, "; "));
}

}  // namespace gptqd
