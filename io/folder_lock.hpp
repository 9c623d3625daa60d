#pragma once
/// @file One run at a time in a folder, also where several machines see it, and also after a run was killed.
///
/// The lock is a small JSON file: who holds it (host, process, its start) and a counter that the holder raises every
/// two seconds. Nothing is concluded from clocks, which differ between machines and jump: a process of this host is
/// looked up; of a holder elsewhere, only a counter that stands still while we watch tells that it is gone.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "kernels/base/error.hpp"

namespace gptqd::io {

/// What a lock file says.
struct LockHolder {
  std::string host;
  std::int64_t pid = 0;
  std::string start;  ///< names the process together with host and pid: boot, process namespace, ticks at its start
  std::string since;  ///< wall time, for people: "2026-05-01 12:30:05 UTC"
  std::int64_t began = 0;  ///< the same in seconds since 1970
  std::int64_t beats = 0;
  std::string activity;

  /// "process 4711 on node3, since 2026-05-01 12:30:05 UTC (2 h 05 min ago): block 3, mlp_in"
  std::string describe() const;
};

enum class LockState {
  free,   ///< no lock file
  held,   ///< its holder is alive
  stale,  ///< its holder is gone, or the file is no lock any more
};

struct LockStatus {
  LockState state = LockState::free;
  std::optional<LockHolder> holder = std::nullopt;  ///< none where the file cannot be read
};

struct LockTimes {
  std::chrono::milliseconds beat{2000};
  /// How long a counter has to stand still. Longer than beats take on a slow network file system.
  std::chrono::milliseconds patience{12'000};
};

/// Looks at a lock without touching it; for a holder on another host it watches the counter for up to `times.patience`.
LockStatus look_at_lock(const std::filesystem::path& path, const LockTimes& times = {});

/// Holds the lock from construction to destruction. A thread raises the counter and writes down what the holder does.
class FolderLock {
 public:
  /// @param activity  what the holder is doing; called from the thread
  /// @param lost      called once from the thread when another process has taken the lock over
  /// @throws Error (usage) naming the holder when it is alive; (io) when the file cannot be written
  FolderLock(std::filesystem::path path, std::function<std::string()> activity,
             std::function<void(const Error& error)> lost, LockTimes times = {});
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock();

  /// The dead holder whose lock was taken over.
  const std::optional<LockStatus>& taken_over() const { return taken_over_; }

 private:
  void beat();
  /// False once the file is gone or another one; when it cannot be told, it is taken for ours.
  bool is_ours() const;
  void write();

  std::filesystem::path path_;
  std::function<std::string()> activity_;
  std::function<void(const Error&)> lost_;
  LockTimes times_;
  std::optional<LockStatus> taken_over_;
  LockHolder self_;
  int descriptor_ = -1;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool leaving_ = false;
  std::thread thread_;
};

}  // namespace gptqd::io
