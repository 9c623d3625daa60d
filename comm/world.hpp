#pragma once
/// @file The ranks of a job: how they start, how they notice that one of them hangs, how they end together.
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "comm/group.hpp"
#include "kernels/base/error.hpp"
#include "kernels/base/launcher_rank.hpp"
#include "kernels/base/progress.hpp"

namespace gptqd::comm {

class JobState;

struct WorldOptions {
  /// Silence, missing ticks or a mutual wait of this length end the job. At least 0.5.
  double stall_seconds = 20;
  /// Signals ask the job to stop (see World) instead of ending this process.
  bool stop_on_signals = false;
  /// When the job ends at once, whatever it is doing: before somebody else ends it.
  std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
};

/// While it lives, this rank owes no ticks of progress; only a silent watchdog thread counts as a stall.
class LongHostStep {
 public:
  LongHostStep(std::shared_ptr<JobState> job, std::string_view what);
  LongHostStep(LongHostStep&& other) noexcept = default;
  LongHostStep(const LongHostStep&) = delete;
  LongHostStep& operator=(const LongHostStep&) = delete;
  LongHostStep& operator=(LongHostStep&&) = delete;
  ~LongHostStep();

 private:
  std::shared_ptr<JobState> job_;
  int id_ = 0;
};

/// All ranks of the job. One object a process, from MPI_Init_thread to MPI_Finalize.
///
/// A watchdog thread of each rank reports {ticks, waiting or not and for what, activity} to rank 0 several times per
/// stall_seconds over a communicator of its own, and rank 0 answers. The job ends with one message and exit code 70
/// when
///  - a rank has been silent for stall_seconds: it was stopped or its node is unreachable;
///  - a rank computes (neither waiting for others nor in a long host step) and has not ticked for stall_seconds;
///  - all ranks wait and none has ticked for stall_seconds: they wait for one another.
/// A rank that waits for one that makes progress is never guilty, however long it takes.
///
/// Stopping. SIGUSR1 on any rank makes stop_requested() true on all of them within a second; the work asks at its
/// boundaries and ends by itself. SIGTERM, SIGINT, SIGHUP, a second SIGUSR1 and the deadline end the job within a
/// second by MPI_Abort: exit code 75 when some rank has called count_saved(), 69 otherwise. Mpirun sends SIGTERM to the
/// ranks also when one of them has died: the message then names the ranks that nothing is heard of any more.
///
/// Groups, grids and communicators made from a World have to go before it.
class World {
 public:
  /// Starts MPI with full thread support, the World's group and the watchdog. Collective over the job.
  /// @throws Error (usage) for bad options, for a second World in one process, for an MPI library without
  ///   MPI_THREAD_MULTIPLE, and when the launcher started several tasks that do not know of each other
  static std::unique_ptr<World> start(const WorldOptions& options);

  /// finish(); a World that an exception unwinds ends the job instead, for the other ranks would wait for this one.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const;
  int size() const;
  /// Among the ranks that share this rank's memory (its node).
  int local_rank() const;
  int local_size() const;
  const std::string& host_name() const;

  Group& group();
  /// To be ticked by kernels, readers and writers.
  Progress& progress();

  /// What this rank is doing, for messages: "block 3, mlp_in". Cheap, thread-safe; counts as a tick.
  void set_activity(std::string activity);
  /// Guards a step that cannot tick: "tokenizing calibration text".
  [[nodiscard]] LongHostStep long_host_step(std::string_view what);

  /// What this rank is doing at the moment.
  std::string activity() const;

  /// Whether the job is asked to stop, as far as this rank knows: ranks have to agree before they act. Thread-safe.
  bool stop_requested() const;
  /// By what: "SIGUSR1".
  std::string stop_cause() const;
  /// Asks as SIGUSR1 does, on behalf of `cause`.
  void request_stop(const std::string& cause);
  /// Something that this run made is on disk: running it again would go on from there. Thread-safe.
  void count_saved();

  /// Ends the whole job with one message on stderr, `gptq-dist: rank 2: <error.one_line()> (<activity>)`, and the exit
  /// code of the error's kind, whichever ranks call it, and however many. Thread-safe.
  [[noreturn]] void fail(const Error& error);

  /// Waits for all ranks, stops the watchdog and ends MPI. Collective; a second call does nothing.
  void finish();

 private:
  class Impl;
  explicit World(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What a stop leaves: "2 new blocks are kept, run the same command again".
std::string describe_saved(std::int64_t saved);

using gptqd::launcher_rank;

}  // namespace gptqd::comm
