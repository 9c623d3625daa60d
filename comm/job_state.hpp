#pragma once
/// @file What one rank's threads and its watchdog know of one another. Internal to comm.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/stop_signals.hpp"
#include "kernels/base/progress.hpp"

namespace gptqd::comm {

/// What a rank reports of itself.
struct RankStatus {
  std::uint64_t ticks = 0;
  bool waiting = false;    ///< in a wait for other ranks
  bool long_step = false;  ///< in a step that owes no ticks
  std::string waiting_for{};
  std::string activity{};
};

/// Shared by a World, its groups, their requests and its watchdog. Thread-safe.
class JobState {
 public:
  Progress& progress() { return progress_; }

  void set_activity(std::string activity);
  /// The activity and, inside a long host step, the step: "block 3, mlp_in".
  std::string activity() const;

  /// The ids pair a begin with its end; several threads may wait at once.
  int begin_wait(std::string_view what);
  void end_wait(int id) noexcept;
  int begin_long_step(std::string_view what);
  void end_long_step(int id) noexcept;

  /// Ticks are read last: a rank that is seen computing is seen with the ticks of its finished wait.
  RankStatus status() const;

  /// Keeps the most urgent request, and of two alike the first.
  void ask_to_stop(const StopRequest& request);
  /// The most urgent request known to this rank, its own signals included.
  StopRequest stop_request();
  /// Blocks that this rank has put on disk since its start, and what rank 0 knows of all ranks'.
  void count_saved() noexcept { ++saved_; }
  std::int64_t saved() const noexcept { return saved_; }
  void set_saved_by_all(std::int64_t saved) noexcept { saved_by_all_ = saved; }
  std::int64_t saved_by_all() const noexcept { return std::max<std::int64_t>(saved_by_all_, saved_); }

  /// Waits hold still from now on, then throw.
  void set_failing() noexcept { failing_ = true; }
  bool failing() const noexcept { return failing_; }
  /// True for the first caller only: the one who prints the job's last message.
  bool claim_report() noexcept { return !reported_.exchange(true); }
  /// What every wait polls at least before it sleeps: longer where ranks have cores to spare.
  void set_least_spin(std::chrono::microseconds spin) noexcept { least_spin_ = spin; }
  std::chrono::microseconds least_spin() const noexcept { return least_spin_; }
  /// MPI is about to end: what is left of groups and requests has to keep its hands off it.
  void set_closed() noexcept { closed_ = true; }
  bool closed() const noexcept { return closed_; }

 private:
  using Marks = std::vector<std::pair<int, std::string>>;
  int begin(Marks& marks, std::string_view what);
  void end(Marks& marks, int id) noexcept;
  std::string activity_locked() const;

  Progress progress_;
  std::atomic<std::int64_t> saved_{0};
  std::atomic<std::int64_t> saved_by_all_{0};
  std::atomic<bool> failing_{false};
  std::atomic<bool> reported_{false};
  std::atomic<bool> closed_{false};
  std::atomic<std::chrono::microseconds> least_spin_{std::chrono::microseconds{0}};
  mutable std::mutex mutex_;
  int last_id_ = 0;
  std::string activity_;
  StopRequest stop_;
  Marks waits_;
  Marks long_steps_;
};

/// Marks this rank as waiting for others while it lives.
class WaitScope {
 public:
  WaitScope(JobState& job, std::string_view what) : job_(job), id_(job.begin_wait(what)) {}
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;
  ~WaitScope() { job_.end_wait(id_); }

 private:
  JobState& job_;
  int id_;
};

/// How a wait divides its time: polling with yields for `spin`, then again and again a sleep, 20 us at first, growing
/// to `longest_sleep`, and polling for `burst`.
struct Patience {
  std::chrono::microseconds spin{50};
  std::chrono::microseconds longest_sleep{1000};
  std::chrono::microseconds burst{0};
};

/// Polls `done` until it returns true, then ticks. Counts as waiting; the watchdog bounds it.
/// @throws Error (internal) when the job is ending and has not ended within 5 s; what `done` throws
void wait_until(JobState& job, std::string_view what, Patience patience, const std::function<bool()>& done);

}  // namespace gptqd::comm
