#pragma once
/// @file The thread that sees to it that a job ends when a rank hangs, and that it ends with one message.
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "comm/job_state.hpp"
#include "comm/mpi/mpi_group.hpp"

namespace gptqd::comm {

/// See World for the rules. Speaks on a communicator of its own; a world of one rank sends nothing.
class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;

  /// Takes over `comm`, a duplicate of the world, and starts the thread.
  Watchdog(std::shared_ptr<JobState> job, MPI_Comm comm, double stall_seconds,
           std::optional<Clock::time_point> deadline);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

  /// Says goodbye to the other ranks' watchdogs; returns when all have. Collective.
  void leave();
  /// Bounds `finalize` (MPI_Finalize), which the other ranks could hold up, by stall_seconds, then joins the thread.
  /// @pre leave()
  void end(int (*finalize)());

  /// Prints `text` once, whichever ranks call this, and ends the job with `code`. Rank 0 does it; if it does not within
  /// 2 s, this rank does.
  [[noreturn]] void end_job(int code, const std::string& text);

 private:
  struct LastWords {
    int code = 0;
    std::string text;
  };

  void run();
  void run_hub();
  void run_spoke();
  void run_alone();
  void guard_end();
  /// Whether the job has to end at once, for a signal or the deadline.
  bool must_stop();
  /// Ends it so. @param absent  ranks that nothing is heard of
  [[noreturn]] void stop_job(const std::string& absent);
  /// Sleeps for a period, less while leaving or when last words wait to be sent. True while leaving.
  bool pause();
  std::optional<LastWords> take_last_words();
  /// Tells the other ranks that this one prints the job's last message, and ends it.
  void announce_end();
  /// Another rank does so: this one is quiet.
  void leave_the_word();
  [[noreturn]] void report(int code, const std::string& text);
  Clock::duration silence_allowed() const;

  std::shared_ptr<JobState> job_;
  CommHandle comm_;
  Clock::duration stall_;
  Clock::duration period_;
  std::optional<Clock::time_point> deadline_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool leaving_ = false;
  bool left_ = false;
  bool ended_ = false;
  std::optional<LastWords> last_words_;
  std::uint8_t announcement_ = 1;

  std::thread thread_;
};

}  // namespace gptqd::comm
