#include "io/folder_lock.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "kernels/base/fault_point.hpp"
#include "kernels/base/human_seconds.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t max_lock_bytes = 64 << 10;
/// The file has one size, so that a beat replaces it in one write.
constexpr std::size_t lock_bytes = 1024;
constexpr std::size_t max_activity = 400;
/// Others that take over the same stale lock may win; after so many times something else is wrong.
constexpr int most_attempts = 5;

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string host_name() {
  char name[HOST_NAME_MAX + 1] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

/// State and start time of a process (proc(5), stat: fields 3 and 22), or nothing when there is none.
std::optional<std::pair<char, std::string>> process(std::int64_t pid) {
  const std::string line = first_line(fmt::format("/proc/{}/stat", pid));
  const auto name_end = line.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) {
    return std::nullopt;
  }
  std::istringstream fields(line.substr(name_end + 1));
  const std::vector<std::string> words{std::istream_iterator<std::string>(fields), {}};
  if (words.size() < 20) {
    return std::nullopt;
  }
  return std::pair(words[0].front(), words[19]);
}

/// The boot and the process namespace within which process ids mean something.
std::string id_space() {
  std::error_code ignored;
  return fmt::format("{} {}", first_line("/proc/sys/kernel/random/boot_id"),
                     fs::read_symlink("/proc/self/ns/pid", ignored).string());
}

LockHolder this_process() {
  LockHolder self;
  self.host = host_name();
  self.pid = ::getpid();
  const auto own = process(self.pid);
  self.start = fmt::format("{} {}", id_space(), own ? own->second : "");
  const auto now = std::time(nullptr);
  self.began = now;
  self.since = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(now));
  return self;
}

std::string text_of(const LockHolder& holder) {
  auto text = nlohmann::json{{"host", holder.host},
                             {"pid", holder.pid},
                             {"start", holder.start},
                             {"since", holder.since},
                             {"began", holder.began},
                             {"beats", holder.beats},
                             {"activity", holder.activity.substr(0, max_activity)}}
                  .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  text.resize(std::max(text.size(), lock_bytes - 1), ' ');
  return text + '\n';
}

/// No holder: the file is there, and is no lock, or not yet.
struct Content {
  bool exists = false;
  std::optional<LockHolder> holder = std::nullopt;
};

Content read_lock(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    return {};
  }
  try {
    const auto json = read_json(path, max_lock_bytes);
    const std::string where = path.string();
    LockHolder holder;
    holder.host = get<std::string>(json, "host", where);
    holder.pid = get<std::int64_t>(json, "pid", where);
    holder.start = get<std::string>(json, "start", where);
    holder.since = get<std::string>(json, "since", where);
    holder.began = get<std::int64_t>(json, "began", where);
    holder.beats = get<std::int64_t>(json, "beats", where);
    holder.activity = get<std::string>(json, "activity", where);
    return {.exists = true, .holder = std::move(holder)};
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::input) {
      throw;
    }
    return {.exists = fs::exists(path, ignored)};
  }
}

bool same_process(const std::optional<LockHolder>& a, const std::optional<LockHolder>& b) {
  return a.has_value() == b.has_value() &&
         (!a || (a->host == b->host && a->pid == b->pid && a->start == b->start && a->began == b->began));
}

bool is_alive_here(const LockHolder& holder) {
  const auto found = process(holder.pid);
  const bool ended = !found || found->first == 'Z' || found->first == 'X';
  return !ended && holder.start == fmt::format("{} {}", id_space(), found->second);
}

std::string describe_age(std::int64_t began) {
  const auto seconds = static_cast<double>(std::time(nullptr) - began);
  return seconds < 0 ? "in the future by this machine's clock" : human_seconds(seconds) + " ago";
}

[[noreturn]] void lock_failed(std::string_view operation, const fs::path& path, int code) {
  throw Error(ErrorKind::io,
              fmt::format("cannot {} the lock {}: {} (errno {}); check the work folder's permissions and its device",
                          operation, path.string(), std::system_category().message(code), code));
}

}  // namespace

std::string LockHolder::describe() const {
  return fmt::format("process {} on {}, since {} ({}){}{}", pid, host, since, describe_age(began),
                     activity.empty() ? "" : ": ", activity);
}

LockStatus look_at_lock(const fs::path& path, const LockTimes& times) {
  const auto first = read_lock(path);
  if (!first.exists) {
    return {};
  }
  const bool ids_are_known =
      first.holder && first.holder->host == host_name() && first.holder->start.starts_with(id_space());
  if (ids_are_known) {
    return {.state = is_alive_here(*first.holder) ? LockState::held : LockState::stale, .holder = first.holder};
  }
  const auto end = Clock::now() + times.patience;
  while (Clock::now() < end) {
    std::this_thread::sleep_for(times.beat / 4);
    const auto now = read_lock(path);
    if (!now.exists) {
      return {};
    }
    if (now.holder && (!same_process(now.holder, first.holder) || now.holder->beats != first.holder->beats)) {
      return {.state = LockState::held, .holder = now.holder};
    }
  }
  return {.state = LockState::stale, .holder = first.holder};
}

FolderLock::FolderLock(fs::path path, std::function<std::string()> activity,
                       std::function<void(const Error& error)> lost, LockTimes times)
    : path_(std::move(path)),
      activity_(std::move(activity)),
      lost_(std::move(lost)),
      times_(times),
      self_(this_process()) {
  const fs::path aside = fmt::format("{}.{}.{}.tmp", path_.string(), self_.host, self_.pid);
  for (int attempt = 0; attempt < most_attempts && descriptor_ < 0; ++attempt) {
    errno = fault_errno("lock.take");
    descriptor_ = errno != 0 ? -1 : ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) {
      break;
    }
    if (errno != EEXIST) {
      lock_failed("create", path_, errno);
    }
    const auto found = look_at_lock(path_, times_);
    if (found.state == LockState::held) {
      throw Error(
          ErrorKind::usage,
          fmt::format("the work folder {} is in use by {}; wait for that run or end it, or choose another --work",
                      path_.parent_path().string(), found.holder->describe()));
    }
    fault_point("lock.take-over");
    // Of several that find it stale one moves it away; who moves away the winner's new lock puts it back.
    if (found.state == LockState::stale && ::rename(path_.c_str(), aside.c_str()) == 0) {
      if (same_process(read_lock(aside).holder, found.holder)) {
        taken_over_ = found;
      } else {
        ::link(aside.c_str(), path_.c_str());
      }
      ::unlink(aside.c_str());
    }
  }
  if (descriptor_ < 0) {
    throw Error(ErrorKind::usage, fmt::format("several runs want the work folder {} at once; start one of them",
                                              path_.parent_path().string()));
  }
  try {
    write();
  } catch (...) {
    ::unlink(path_.c_str());
    ::close(descriptor_);
    throw;
  }
  thread_ = std::thread([this] { beat(); });
}

FolderLock::~FolderLock() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (is_ours()) {
    ::unlink(path_.c_str());
  }
  ::close(descriptor_);
}

void FolderLock::write() {
  self_.activity = activity_();
  const std::string text = text_of(self_);
  // In place: a file that another run has put there meanwhile is another file.
  if (::pwrite(descriptor_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::ftruncate(descriptor_, static_cast<off_t>(text.size())) != 0) {
    lock_failed("write", path_, errno);
  }
  ::fsync(descriptor_);  // so that other machines see it soon; a failure shows at the next write
}

bool FolderLock::is_ours() const {
  struct stat own {};
  struct stat there {};
  if (::stat(path_.c_str(), &there) != 0) {
    return errno != ENOENT;
  }
  return ::fstat(descriptor_, &own) != 0 || (own.st_ino == there.st_ino && own.st_dev == there.st_dev);
}

void FolderLock::beat() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, times_.beat, [&] { return leaving_; })) {
    lock.unlock();
    try {
      fault_point("lock.heartbeat");
      ++self_.beats;
      write();
    } catch (const Error&) {
      // The work's own writes meet the same trouble and report it; a lock that is not raised is taken for stale at
      // worst.
    }
    // Whoever moves it away by mistake, having found an older one stale, puts it back at once.
    if (!is_ours() && (std::this_thread::sleep_for(times_.beat / 8), !is_ours())) {
      const auto other = read_lock(path_).holder;
      lost_(Error(ErrorKind::io,
                  fmt::format("the lock {} was {}: this run had been still for too long, or somebody removed it",
                              path_.string(), other ? "taken over by " + other->describe() : "removed")));
      return;
    }
    lock.lock();
  }
}

}  // namespace gptqd::io
