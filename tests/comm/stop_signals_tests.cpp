#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "comm/job_state.hpp"
#include "comm/stop_signals.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;

TEST(StopSignals, OneSigUsr1IsAnOrderlyStopAndALaterOneAnImmediate) {
  const StopSignals signals;
  EXPECT_EQ(StopSignals::requested().level, StopLevel::none);

  std::raise(SIGUSR1);
  std::raise(SIGUSR1);  // the same, delivered twice
  EXPECT_EQ(StopSignals::requested().level, StopLevel::orderly);
  EXPECT_EQ(StopSignals::requested().cause, "SIGUSR1");

  std::this_thread::sleep_for(1050ms);
  std::raise(SIGUSR1);
  EXPECT_EQ(StopSignals::requested().level, StopLevel::at_once);
  EXPECT_EQ(StopSignals::requested().cause, "a second SIGUSR1");
}

TEST(StopSignals, SigTermIsListenedToWhenSomebodyCanActAndNotAfterwards) {
  EXPECT_EXIT(
      {
        StopSignals signals;
        std::raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "");
  {
    StopSignals signals;
    signals.listen_to_all();
    std::raise(SIGTERM);
    EXPECT_EQ(StopSignals::requested().level, StopLevel::at_once);
    EXPECT_EQ(StopSignals::requested().cause, "SIGTERM");
  }
  EXPECT_EXIT(std::raise(SIGTERM), ::testing::KilledBySignal(SIGTERM), "");
  std::raise(SIGUSR1);  // too late to matter: ignored
}

TEST(StopSignals, WhatNohupIgnoresStaysIgnored) {
  auto* const before = std::signal(SIGHUP, SIG_IGN);
  {
    StopSignals signals;
    signals.listen_to_all();
    std::raise(SIGHUP);
    EXPECT_EQ(StopSignals::requested().level, StopLevel::none);
  }
  std::signal(SIGHUP, before);
}

TEST(JobState, KeepsTheMostUrgentRequest) {
  JobState job;
  job.ask_to_stop({.level = StopLevel::orderly, .cause = "first"});
  job.ask_to_stop({.level = StopLevel::orderly, .cause = "second"});
  EXPECT_EQ(job.stop_request().cause, "first");

  job.ask_to_stop({.level = StopLevel::at_once, .cause = "third"});
  job.ask_to_stop({.level = StopLevel::none, .cause = ""});
  EXPECT_EQ(job.stop_request().cause, "third");
}

}  // namespace
}  // namespace gptqd::comm
