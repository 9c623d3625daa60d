#include "comm/stall_judge.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "kernels/base/error.hpp"

namespace gptqd::comm {

namespace {

/// Waits that a deadlock's message lists.
constexpr std::size_t waits_shown = 8;

}  // namespace

std::string in_parentheses(const std::string& activity) {
  return activity.empty() ? std::string() : fmt::format(" ({})", activity);
}

StallJudge::StallJudge(int ranks, Seconds stall, Seconds period, Time now)
    : stall_(stall), recent_(std::min(3 * period, stall / 2)), ranks_(static_cast<std::size_t>(ranks)) {
  restart(now);
}

void StallJudge::restart(Time now) {
  for (auto& rank : ranks_) {
    rank.heard = rank.computing_since = rank.waiting_since = now;
  }
}

void StallJudge::heard(int number, const RankStatus& status, Time now) {
  auto& rank = ranks_.at(static_cast<std::size_t>(number));
  const bool ticked = status.ticks != rank.status.ticks;
  if (ticked || status.waiting || status.long_step) {
    rank.computing_since = now;
  }
  if (ticked || !status.waiting || status.long_step) {
    rank.waiting_since = now;
  }
  rank.heard = now;
  rank.status = status;
}

bool StallJudge::is_recent(const Rank& rank, Time now) const { return now - rank.heard <= recent_; }

std::string StallJudge::not_heard_since(Time time) const {
  std::vector<std::string> names;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    if (!ranks_[r].left && ranks_[r].heard < time) {
      names.push_back(fmt::format("rank {}{}", r, in_parentheses(ranks_[r].status.activity)));
    }
  }
  return fmt::format("{}", fmt::join(names, " and "));
}

std::optional<std::string> StallJudge::verdict(Time now) const {
  const auto present = [](const Rank& rank) { return !rank.left; };
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    if (present(ranks_[r]) && now - ranks_[r].heard >= stall_) {
      return fmt::format("rank {} has been silent for {:.3g} s{}: stopped, or its node is unreachable", r,
                         stall_.count(), in_parentheses(ranks_[r].status.activity));
    }
  }
  // A rank whose reports stopped is judged by its silence, not by the last thing it said.
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    if (present(ranks_[r]) && is_recent(ranks_[r], now) && now - ranks_[r].computing_since >= stall_) {
      return fmt::format(
          "rank {} has made no progress for {:.3g} s{}: it hangs in a computation, a device or a file system; if its "
          "steps are that slow, raise --stall-seconds",
          r, stall_.count(), in_parentheses(ranks_[r].status.activity));
    }
  }
  const bool deadlock = std::any_of(ranks_.begin(), ranks_.end(), present) &&
                        std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& rank) {
                          return rank.left || (is_recent(rank, now) && now - rank.waiting_since >= stall_);
                        });
  if (!deadlock) {
    return std::nullopt;
  }
  std::string waits;
  std::size_t shown = 0;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    if (present(ranks_[r]) && shown < waits_shown) {
      waits += fmt::format("{}rank {} waits in {}{}", shown++ == 0 ? "" : ", ", r, ranks_[r].status.waiting_for,
                           in_parentheses(ranks_[r].status.activity));
    }
  }
  const auto waiting = static_cast<std::size_t>(std::count_if(ranks_.begin(), ranks_.end(), present));
  if (waiting > shown) {
    waits += fmt::format(", and {} more", waiting - shown);
  }
  return fmt::format("{}: nothing has moved for {:.3g} s, the ranks wait for one another", waits, stall_.count());
}

}  // namespace gptqd::comm
