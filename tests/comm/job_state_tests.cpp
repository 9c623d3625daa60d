#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "comm/job_state.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;

TEST(JobState, ReportsTheOldestWait) {
  JobState job;
  const int first = job.begin_wait("weights of block 3");
  const int second = job.begin_wait("a barrier");

  EXPECT_EQ(job.status().waiting_for, "weights of block 3");
  job.end_wait(first);
  EXPECT_EQ(job.status().waiting_for, "a barrier");
  job.end_wait(second);
  EXPECT_FALSE(job.status().waiting);
}

TEST(JobState, TheEndOfAWaitIsATick) {
  JobState job;
  const auto before = job.status().ticks;

  { const WaitScope scope(job, "a barrier"); }

  EXPECT_GT(job.status().ticks, before);
}

TEST(JobState, ActivityNamesTheLongStep) {
  JobState job;
  job.set_activity("start");

  const int step = job.begin_long_step("tokenizing calibration text");

  EXPECT_EQ(job.activity(), "start, tokenizing calibration text");
  EXPECT_TRUE(job.status().long_step);
  job.end_long_step(step);
  EXPECT_EQ(job.activity(), "start");
  EXPECT_FALSE(job.status().long_step);
}

TEST(JobState, OneReportIsClaimed) {
  JobState job;

  EXPECT_TRUE(job.claim_report());
  EXPECT_FALSE(job.claim_report());
}

TEST(WaitUntil, ReturnsAtOnceWhenDone) {
  JobState job;
  int polls = 0;

  wait_until(job, "a message", {}, [&] { return ++polls == 1; });

  EXPECT_EQ(polls, 1);
  EXPECT_EQ(job.status().ticks, 1u);
}

TEST(WaitUntil, CountsAsWaitingWhileItPolls) {
  JobState job;
  std::atomic<bool> arrived = false;
  std::thread waiter([&] { wait_until(job, "a message", {}, [&] { return arrived.load(); }); });
  while (!job.status().waiting) {
    std::this_thread::sleep_for(1ms);
  }

  const auto seen = job.status();
  arrived = true;
  waiter.join();

  EXPECT_EQ(seen.waiting_for, "a message");
  EXPECT_FALSE(job.status().waiting);
}

TEST(WaitUntil, PassesOnWhatThePollThrows) {
  JobState job;

  EXPECT_THROW(wait_until(job, "a message", {}, []() -> bool { throw Error(ErrorKind::internal, "broken"); }), Error);

  EXPECT_FALSE(job.status().waiting);
}

TEST(WaitUntil, GivesUpWhenTheJobIsEnding) {
  JobState job;
  job.set_failing();

  EXPECT_THROW(wait_until(job, "a message", {}, [] { return false; }), Error);
}

}  // namespace
}  // namespace gptqd::comm
