#pragma once
/// @file The rules by which rank 0 finds that a job hangs. Pure: no threads, no messages, no clock. Internal to comm.
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "comm/job_state.hpp"

namespace gptqd::comm {

/// Judges from the ranks' reports (see World for the rules).
class StallJudge {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Seconds = std::chrono::duration<double>;

  /// @param period  between two reports of one rank
  StallJudge(int ranks, Seconds stall, Seconds period, Time now);

  void heard(int rank, const RankStatus& status, Time now);
  /// This rank said goodbye: it may be silent.
  void left(int rank) { ranks_[static_cast<std::size_t>(rank)].left = true; }
  /// The judge itself was away (suspended, not scheduled): nobody has been silent or idle yet.
  void restart(Time now);

  /// "rank 1 (block 3, mlp_in) and rank 2": those present that have not been heard since; empty when there is none.
  std::string not_heard_since(Time time) const;

  /// The job's last message without "gptq-dist: ", or nothing while all is well.
  std::optional<std::string> verdict(Time now) const;

 private:
  struct Rank {
    RankStatus status;
    Time heard;            ///< last report
    Time computing_since;  ///< latest of: ticked, waited, in a long step
    Time waiting_since;    ///< latest of: ticked, seen not waiting
    bool left = false;
  };
  bool is_recent(const Rank& rank, Time now) const;

  Seconds stall_;
  Seconds recent_;
  std::vector<Rank> ranks_;
};

/// " (block 3, mlp_in)", or nothing for an empty activity.
std::string in_parentheses(const std::string& activity);

}  // namespace gptqd::comm
