/// @file Ranks that die or hang: the job ends soon, leaves no process, and the next run completes it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <thread>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using gptqd::test::becomes_true;
using ::testing::HasSubstr;

constexpr double patience_seconds = 15;

/// Long enough that a signal meets it at work.
Options longer_run(const std::filesystem::path& out) {
  return quick_run(out, {{"--samples", "64"}, {"--seqlen", "256"}});
}

/// The process of a rank, or -1 when there is none (yet).
pid_t process_of_rank(const Command& job, int rank) {
  const std::string variable = fmt::format("OMPI_COMM_WORLD_RANK={}", rank) + '\0';
  for (const auto process : job.processes()) {
    if (read_text(fmt::format("/proc/{}/environ", process)).find(variable) != std::string::npos) {
      return process;
    }
  }
  return -1;
}

class Fault : public ::testing::Test {
 protected:
  /// Starts the job, sends a signal to one rank when the first block's shard is complete, and waits for the job's end.
  void run_and_signal(int ranks, int rank, int signal) {
    auto options = longer_run(out_);
    options["--stall-seconds"] = "2";
    Command job(command_line(ranks, options));
    const auto sidecar = work_of(out_) / "shards/block_00000.json";
    ASSERT_TRUE(becomes_true(60, [&] { return std::filesystem::exists(sidecar); })) << job.err();
    const auto process = process_of_rank(job, rank);
    ASSERT_GT(process, 0);

    kill(process, signal);

    const auto code = job.wait(patience_seconds);
    ASSERT_TRUE(code.has_value()) << job.err();
    EXPECT_NE(*code, 0);
    EXPECT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
    EXPECT_FALSE(std::filesystem::exists(out_));
    messages_ = job.err();
  }

  /// The same run again, to its end: finished blocks are kept, the bytes those of an undisturbed run.
  void expect_completion() {
    expect_success(2, longer_run(out_));
    expect_success(1, longer_run(folder_ / "undisturbed"));

    EXPECT_GE(report_of(out_).at("blocks").at("found"), 1);
    EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
    EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
  }

  TemporaryFolder folder_;
  std::filesystem::path out_ = folder_ / "out";
  std::string messages_;
};

TEST_F(Fault, AKilledRankEndsTheJobAndTheNextRunCompletesIt) {
  run_and_signal(2, 1, SIGKILL);

  expect_completion();
}

TEST_F(Fault, AKilledFirstRankEndsTheJobAndTheNextRunCompletesIt) {
  run_and_signal(3, 0, SIGKILL);

  expect_completion();
}

TEST_F(Fault, AStoppedRankEndsTheJobWithAMessageAndTheNextRunCompletesIt) {
  run_and_signal(2, 1, SIGSTOP);

  EXPECT_THAT(messages_, HasSubstr("has been silent for"));
  expect_completion();
}

TEST_F(Fault, KilledAgainAndAgainAtAnyInstantItStillEndsWithTheSameBytes) {
  for (const int milliseconds : {150, 400, 650, 900, 1200}) {
    Command job(command_line(2, longer_run(out_)));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    for (const auto process : job.processes()) {
      kill(process, SIGKILL);
    }
    ASSERT_TRUE(job.wait(patience_seconds).has_value());
    ASSERT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
  }

  expect_success(2, longer_run(out_));
  expect_success(1, longer_run(folder_ / "undisturbed"));

  EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
  EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
}

}  // namespace
}  // namespace gptqd::jobs::test
