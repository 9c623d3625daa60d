#include "comm/mpi/watchdog.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "comm/stall_judge.hpp"
#include "comm/world.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::comm {

namespace {

using namespace std::chrono_literals;

constexpr int tag_of_reports = 1;
constexpr int tag_of_last_words = 2;
constexpr int tag_of_end = 3;
constexpr auto longest_period = 250ms;
constexpr auto leaving_period = 1ms;
/// What rank 0 gets to act on another rank's last words.
constexpr auto hand_over_time = 2s;
/// What rank 1 gets to act when rank 0 is silent.
constexpr auto deputy_time = 500ms;
/// Launchers forward stderr on their own time; what is in the pipe when the job is killed may be lost.
constexpr auto flush_time = 100ms;
constexpr auto give_up_time = 10s;
/// How often a rank looks for signals.
constexpr auto signal_period = 50ms;
/// How long rank 0 listens for the other ranks before it stops the job at once: a rank that died is silent by then. A
/// launcher that sends SIGTERM sends SIGKILL a second later.
constexpr auto roll_call_time = 350ms;
/// What rank 0 gets to stop the job at once before rank 1 does, when nothing is heard of it, and before any rank does.
constexpr auto stop_hand_over_time = 700ms;
constexpr auto long_stop_hand_over_time = 3s;

/// Messages of fixed size below the eager limit of every MPI transport: sending one never waits for its receiver.
struct Report {
  std::uint64_t ticks = 0;
  std::uint8_t waiting = 0;
  std::uint8_t long_step = 0;
  std::uint8_t goodbye = 0;
  StopLevel stop_level = StopLevel::none;
  std::int64_t saved = 0;  ///< of the sender; in rank 0's replies those of all
  char stop_cause[64] = "";
  char waiting_for[320] = "";
  char activity[320] = "";
};
struct LastMessage {
  std::int32_t code = 0;
  char text[2040] = "";
};
static_assert(std::is_trivially_copyable_v<Report> && std::is_trivially_copyable_v<LastMessage>);

template <std::size_t N>
void store(char (&field)[N], std::string_view text) {
  const auto length = std::min(text.size(), N - 1);
  std::memcpy(field, text.data(), length);
  field[length] = '\0';
}

Report report_of(const RankStatus& status, const StopRequest& stop, std::int64_t saved, bool goodbye) {
  Report report;
  report.stop_level = stop.level;
  store(report.stop_cause, stop.cause);
  report.saved = saved;
  report.ticks = status.ticks;
  report.waiting = status.waiting;
  report.long_step = status.long_step;
  report.goodbye = goodbye;
  store(report.waiting_for, status.waiting_for);
  store(report.activity, status.activity);
  return report;
}

RankStatus status_of(const Report& report) {
  return {.ticks = report.ticks,
          .waiting = report.waiting != 0,
          .long_step = report.long_step != 0,
          .waiting_for = report.waiting_for,
          .activity = report.activity};
}

/// A receive that is always posted. Withdrawn when it goes.
template <class Message>
class Inbox {
 public:
  Inbox(MPI_Comm comm, int source, int tag) : comm_(comm), source_(source), tag_(tag) { post(); }
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;
  ~Inbox() {
    MPI_Cancel(&request_);
    MPI_Wait(&request_, MPI_STATUS_IGNORE);
  }

  struct Received {
    int source;
    Message message;
  };
  std::optional<Received> take_message() {
    int flag = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&request_, &flag, &status), "watching the other ranks");
    if (flag == 0) {
      return std::nullopt;
    }
    Received received{.source = status.MPI_SOURCE, .message = message_};
    post();
    return received;
  }

 private:
  void post() {
    check_mpi(MPI_Irecv(&message_, static_cast<int>(sizeof(Message)), MPI_BYTE, source_, tag_, comm_, &request_),
              "watching the other ranks");
  }

  MPI_Comm comm_;
  int source_;
  int tag_;
  Message message_{};
  MPI_Request request_ = MPI_REQUEST_NULL;
};

/// At most one message under way to one rank.
template <class Message>
class Outbox {
 public:
  Outbox(MPI_Comm comm, int peer, int tag) : comm_(comm), peer_(peer), tag_(tag) {}

  /// True when nothing is under way.
  bool is_free() {
    int flag = 0;
    check_mpi(MPI_Test(&request_, &flag, MPI_STATUS_IGNORE), "telling other ranks of progress");
    return flag != 0;
  }
  /// @pre is_free()
  void send(const Message& message) {
    message_ = message;
    check_mpi(MPI_Isend(&message_, static_cast<int>(sizeof(Message)), MPI_BYTE, peer_, tag_, comm_, &request_),
              "telling other ranks of progress");
  }

 private:
  MPI_Comm comm_;
  int peer_;
  int tag_;
  Message message_{};
  MPI_Request request_ = MPI_REQUEST_NULL;
};

void print_line(std::string line) {
  line += '\n';
  // One write, so that lines of several processes do not mix.
  for (std::string_view rest = line; !rest.empty();) {
    const auto written = ::write(STDERR_FILENO, rest.data(), rest.size());
    if (written <= 0) {
      return;
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

Watchdog::Watchdog(std::shared_ptr<JobState> job, MPI_Comm comm, double stall_seconds,
                   std::optional<Clock::time_point> deadline)
    : job_(job),
      comm_(std::move(job), comm),
      stall_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(stall_seconds))),
      period_(std::min<Clock::duration>(stall_ / 10, longest_period)),
      deadline_(deadline) {
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  if (thread_.joinable()) {
    leave();
    end([] { return MPI_SUCCESS; });
  }
}

void Watchdog::run() {
  try {
    if (comm_.size() == 1) {
      run_alone();
    } else if (comm_.rank() == 0) {
      run_hub();
    } else {
      run_spoke();
    }
  } catch (const Error& error) {
    report(exit_code(error.kind()), fmt::format("gptq-dist: rank {}: {}", comm_.rank(), error.one_line()));
  }
  {
    const std::lock_guard lock(mutex_);
    left_ = true;
  }
  wake_.notify_all();
  guard_end();
}

void Watchdog::run_alone() {
  auto previous = Clock::now();
  StallJudge judge(1, stall_, period_, previous);
  while (!pause()) {
    const auto now = Clock::now();
    if (now - previous > stall_ / 2) {
      judge.restart(now);
    }
    previous = now;
    judge.heard(0, job_->status(), now);
    if (must_stop()) {
      stop_job({});
    }
    if (const auto verdict = judge.verdict(now)) {
      report(exit_code(ErrorKind::internal), "gptq-dist: " + *verdict);
    }
  }
}

void Watchdog::run_hub() {
  const int size = comm_.size();
  auto previous = Clock::now();
  StallJudge judge(size, stall_, period_, previous);
  Inbox<Report> reports(comm_.get(), MPI_ANY_SOURCE, tag_of_reports);
  Inbox<LastMessage> last_words(comm_.get(), MPI_ANY_SOURCE, tag_of_last_words);
  Inbox<std::uint8_t> end(comm_.get(), MPI_ANY_SOURCE, tag_of_end);
  std::vector<std::unique_ptr<Outbox<Report>>> replies;
  for (int r = 0; r < size; ++r) {
    replies.push_back(std::make_unique<Outbox<Report>>(comm_.get(), r, tag_of_reports));
  }
  int present = size - 1;
  std::optional<Clock::time_point> roll_call;
  std::vector<std::int64_t> saved(static_cast<std::size_t>(size), 0);
  const auto saved_by_all = [&] {
    saved[0] = job_->saved();
    return std::accumulate(saved.begin(), saved.end(), std::int64_t{0});
  };

  for (bool leaving = false; !leaving || present > 0; leaving = pause()) {
    const auto now = Clock::now();
    if (now - previous > stall_ / 2) {
      judge.restart(now);  // this process was suspended, perhaps with all others: their reports are on the way
    }
    previous = now;
    if (end.take_message()) {
      leave_the_word();
    }
    if (const auto last = last_words.take_message()) {
      report(last->message.code, last->message.text);
    }
    const auto own = job_->status();
    while (const auto received = reports.take_message()) {
      judge.heard(received->source, status_of(received->message), now);
      job_->ask_to_stop({.level = received->message.stop_level, .cause = received->message.stop_cause});
      saved[static_cast<std::size_t>(received->source)] = received->message.saved;
      if (received->message.goodbye != 0) {
        judge.left(received->source);
        --present;
      } else if (auto& reply = *replies[static_cast<std::size_t>(received->source)]; reply.is_free()) {
        reply.send(report_of(own, job_->stop_request(), saved_by_all(), false));
      }
    }
    judge.heard(0, own, now);
    job_->set_saved_by_all(saved_by_all());
    if (must_stop()) {
      if (!roll_call) {
        roll_call = now;
      } else if (now - *roll_call >= roll_call_time) {
        stop_job(judge.not_heard_since(*roll_call));
      }
    }
    if (const auto verdict = judge.verdict(now)) {
      report(exit_code(ErrorKind::internal), "gptq-dist: " + *verdict);
    }
  }

  // Everyone has said goodbye and listens for ours alone.
  const auto deadline = Clock::now() + stall_;
  const auto wait_for_replies = [&] {
    wait_until(*job_, "the end of the job", {}, [&] {
      require(Clock::now() < deadline, "the end of the job: another rank does not take its last message");
      return std::all_of(replies.begin(), replies.end(), [](const auto& reply) { return reply->is_free(); });
    });
  };
  wait_for_replies();
  for (int r = 1; r < size; ++r) {
    replies[static_cast<std::size_t>(r)]->send(report_of(job_->status(), {}, 0, true));
  }
  wait_for_replies();
}

Watchdog::Clock::duration Watchdog::silence_allowed() const {
  // Rank 0 judges first; of the others the lowest that is cut off, so that one message appears: the next one leaves it
  // the time to print and to have the launcher end the job.
  const auto patience = comm_.rank() <= 1 ? Clock::duration::zero() : deputy_time + (comm_.rank() - 2) * period_;
  return stall_ + stall_ / 10 + std::min<Clock::duration>(patience, stall_ * 3 / 10);
}

void Watchdog::run_spoke() {
  auto previous = Clock::now();
  auto heard = previous;
  std::string activity_of_hub;
  Inbox<Report> replies(comm_.get(), 0, tag_of_reports);
  Outbox<Report> reports(comm_.get(), 0, tag_of_reports);
  Outbox<LastMessage> last_words(comm_.get(), 0, tag_of_last_words);
  Inbox<std::uint8_t> end(comm_.get(), MPI_ANY_SOURCE, tag_of_end);
  bool said_goodbye = false;
  std::optional<Clock::time_point> stop_seen;

  for (bool leaving = false;; leaving = pause()) {
    const auto now = Clock::now();
    if (now - previous > stall_ / 2) {
      heard = now;
    }
    previous = now;
    while (const auto received = replies.take_message()) {
      heard = now;
      activity_of_hub = received->message.activity;
      job_->ask_to_stop({.level = received->message.stop_level, .cause = received->message.stop_cause});
      job_->set_saved_by_all(received->message.saved);
      if (received->message.goodbye != 0) {
        // The goodbye is complete at the receiver, so this sender's request is, too.
        wait_until(*job_, "the end of the job", {}, [&] { return reports.is_free(); });
        return;
      }
    }
    if (end.take_message()) {
      leave_the_word();
    }
    if (now - heard > silence_allowed()) {
      report(exit_code(ErrorKind::internal),
             fmt::format("gptq-dist: rank 0 has been silent for {:.3g} s{}: stopped, or its node is unreachable from "
                         "rank {}",
                         StallJudge::Seconds(now - heard).count(), in_parentheses(activity_of_hub), comm_.rank()));
    }
    if (must_stop()) {
      if (!stop_seen) {
        stop_seen = now;
      } else if (now - *stop_seen >=
                 (comm_.rank() == 1 && heard < *stop_seen ? stop_hand_over_time : long_stop_hand_over_time)) {
        stop_job(fmt::format("rank 0{}", in_parentheses(activity_of_hub)));
      }
    }
    if (!said_goodbye && reports.is_free()) {
      reports.send(report_of(job_->status(), job_->stop_request(), job_->saved(), leaving));
      said_goodbye = leaving;
    }
    if (const auto last = take_last_words(); last && last_words.is_free()) {
      LastMessage message{.code = last->code};
      store(message.text, last->text);
      last_words.send(message);
    }
  }
}

void Watchdog::guard_end() {
  const auto allowed = comm_.size() == 1 ? stall_ : silence_allowed();
  auto previous = Clock::now();
  auto since = previous;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period_, [&] { return ended_; })) {
    const auto now = Clock::now();
    if (now - previous > stall_ / 2) {
      since = now;  // it is this process that was suspended
    }
    previous = now;
    if (now - since > allowed) {
      lock.unlock();
      if (job_->claim_report()) {
        print_line(fmt::format(
            "gptq-dist: rank {}: the work is done, but another rank did not come to the end of the job", comm_.rank()));
      }
      ::_exit(exit_code(ErrorKind::internal));
    }
  }
}

bool Watchdog::pause() {
  std::unique_lock lock(mutex_);
  if (leaving_) {
    lock.unlock();
    std::this_thread::sleep_for(leaving_period);
    return true;
  }
  const auto end = Clock::now() + period_;
  const auto activity = job_->activity();  // a new one is told at once: it names the place of what ends a rank
  const auto is_called = [&] { return leaving_ || last_words_.has_value(); };
  while (!wake_.wait_for(lock, std::min<Clock::duration>(signal_period, period_), is_called) && Clock::now() < end &&
         job_->stop_request().level != StopLevel::at_once && job_->activity() == activity) {
  }
  return leaving_;
}

bool Watchdog::must_stop() {
  if (deadline_ && Clock::now() >= *deadline_) {
    job_->ask_to_stop({.level = StopLevel::at_once, .cause = "the job's end is near"});
  }
  return job_->stop_request().level == StopLevel::at_once;
}

void Watchdog::stop_job(const std::string& absent) {
  const auto saved = job_->saved_by_all();
  const auto doing = absent.empty() ? fmt::format(": stopped at once{}", in_parentheses(job_->activity()))
                                    : fmt::format(", and nothing is heard of {} any more: stopped at once", absent);
  report(exit_code(saved > 0 ? ErrorKind::stopped : ErrorKind::no_gain),
         fmt::format("gptq-dist: {}{}; {}", job_->stop_request().cause, doing, describe_saved(saved)));
}

std::optional<Watchdog::LastWords> Watchdog::take_last_words() {
  const std::lock_guard lock(mutex_);
  return std::exchange(last_words_, std::nullopt);
}

void Watchdog::leave() {
  const WaitScope scope(*job_, "the end of the job");
  std::unique_lock lock(mutex_);
  leaving_ = true;
  wake_.notify_all();
  wake_.wait(lock, [&] { return left_; });
}

void Watchdog::end(int (*finalize)()) {
  finalize();
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::end_job(int code, const std::string& text) {
  const WaitScope scope(*job_, "the end of the job");
  job_->set_failing();
  if (comm_.rank() != 0) {
    std::unique_lock lock(mutex_);
    if (!left_) {
      last_words_ = LastWords{.code = code, .text = text};
      wake_.notify_all();
      lock.unlock();
      std::this_thread::sleep_for(hand_over_time + std::min<Clock::duration>(comm_.rank() * 20ms, 1s));
    }
  }
  report(code, text);
}

void Watchdog::announce_end() {
  for (int r = 0; r < comm_.size() && !job_->closed(); ++r) {
    if (r != comm_.rank()) {
      // Never completed: the process is over before. Too short to wait for its receiver.
      MPI_Request request = MPI_REQUEST_NULL;
      MPI_Isend(&announcement_, 1, MPI_BYTE, r, tag_of_end, comm_.get(), &request);
    }
  }
}

void Watchdog::leave_the_word() {
  // The launcher is about to send SIGTERM: the reason has been told.
  job_->set_failing();
  job_->claim_report();
}

void Watchdog::report(int code, const std::string& text) {
  job_->set_failing();
  if (job_->claim_report()) {
    announce_end();
    print_line(text);
    std::this_thread::sleep_for(flush_time);
    if (!job_->closed()) {
      MPI_Abort(MPI_COMM_WORLD, code);
    }
  } else {
    std::this_thread::sleep_for(give_up_time);  // another thread of this rank is ending the job
  }
  ::_exit(code);
}

}  // namespace gptqd::comm
