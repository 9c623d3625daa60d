#include "comm/job_state.hpp"

#include <algorithm>
#include <thread>

#include "kernels/base/error.hpp"

namespace gptqd::comm {

namespace {

constexpr std::chrono::microseconds first_sleep{20};
/// Longer than a failing rank takes to end the job.
constexpr std::chrono::seconds ending_time{5};

}  // namespace

void JobState::set_activity(std::string activity) {
  progress_.tick();
  const std::lock_guard lock(mutex_);
  activity_ = std::move(activity);
}

std::string JobState::activity() const {
  const std::lock_guard lock(mutex_);
  return activity_locked();
}

std::string JobState::activity_locked() const {
  if (long_steps_.empty()) {
    return activity_;
  }
  return activity_.empty() ? long_steps_.back().second : activity_ + ", " + long_steps_.back().second;
}

void JobState::ask_to_stop(const StopRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.level > stop_.level) {
    stop_ = request;
  }
}

StopRequest JobState::stop_request() {
  ask_to_stop(StopSignals::requested());
  const std::lock_guard lock(mutex_);
  return stop_;
}

int JobState::begin(Marks& marks, std::string_view what) {
  const std::lock_guard lock(mutex_);
  marks.emplace_back(++last_id_, what);
  return last_id_;
}

void JobState::end(Marks& marks, int id) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase_if(marks, [id](const auto& mark) { return mark.first == id; });
}

int JobState::begin_wait(std::string_view what) { return begin(waits_, what); }

void JobState::end_wait(int id) noexcept {
  progress_.tick();
  end(waits_, id);
}

int JobState::begin_long_step(std::string_view what) { return begin(long_steps_, what); }

void JobState::end_long_step(int id) noexcept {
  progress_.tick();
  end(long_steps_, id);
}

RankStatus JobState::status() const {
  RankStatus status;
  {
    const std::lock_guard lock(mutex_);
    status.waiting = !waits_.empty();
    status.long_step = !long_steps_.empty();
    // The oldest wait is the one that matters when nothing moves.
    status.waiting_for = waits_.empty() ? std::string() : waits_.front().second;
    status.activity = activity_locked();
  }
  status.ticks = progress_.ticks();
  return status;
}

void wait_until(JobState& job, std::string_view what, Patience patience, const std::function<bool()>& done) {
  using Clock = std::chrono::steady_clock;
  const auto throw_if_failing = [&] {
    if (job.failing()) {
      // Unwinding would free memory that transfers still write to; the job is over before this sleep is.
      std::this_thread::sleep_for(ending_time);
      throw Error(ErrorKind::internal, fmt::format("{}: given up, for the job is ending on another error", what));
    }
  };
  throw_if_failing();
  if (done()) {
    job.progress().tick();
    return;
  }
  const WaitScope scope(job, what);
  const auto done_within = [&](std::chrono::microseconds duration) {
    const auto end = Clock::now() + duration;
    do {
      if (done()) {
        return true;
      }
      std::this_thread::yield();
    } while (Clock::now() < end);
    return false;
  };
  auto sleep = std::min(first_sleep, patience.longest_sleep);
  for (bool finished = done_within(std::max(patience.spin, job.least_spin())); !finished;
       finished = done_within(patience.burst)) {
    throw_if_failing();
    std::this_thread::sleep_for(sleep);
    sleep = std::min(patience.longest_sleep, sleep + sleep / 4);
  }
}

}  // namespace gptqd::comm
