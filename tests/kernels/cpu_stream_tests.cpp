#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/base/fault_point.hpp"
#include "kernels/cpu/cpu_stream.hpp"

namespace gptqd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.message();
  }
  return "nothing was thrown";
}

/// Work that ends when it is told to.
class Gate {
 public:
  std::function<void()> work() {
    return [open = open_.get_future().share()] { open.wait(); };
  }
  void open() { open_.set_value(); }

 private:
  std::promise<void> open_;
};

class CpuStreams : public ::testing::Test {
 protected:
  std::shared_ptr<WorkClock> clock_ = std::make_shared<WorkClock>();
  CpuStream first_{clock_};
  CpuStream second_{clock_};
};

TEST_F(CpuStreams, ADeviceThatATesterLostFailsEveryCallAndWhatIsUnderWay) {
  Gate gate;
  bool ran = false;
  first_.enqueue(gate.work());
  first_.enqueue([&] { ran = true; });
  const Event mark = first_.record();
  second_.wait(mark);
  set_faults("phase:lose-device");
  fault_point("phase");
  gate.open();

  const std::vector<std::function<void()>> calls{[&] { mark.synchronize(); }, [&] { first_.enqueue([] {}); },
                                                 [&] { second_.synchronize(); }, [&] { second_.record(); },
                                                 [&] { second_.wait(mark); }};
  for (const auto& call : calls) {
    EXPECT_THAT(failure_of(call), AllOf(HasSubstr("is lost to this process"), HasSubstr("run the same command again")));
  }
  set_faults("");
  EXPECT_FALSE(ran);
  EXPECT_THAT(failure_of([&] { second_.synchronize(); }), HasSubstr("is lost to this process"));
}

TEST_F(CpuStreams, CountsTheTimeBetweenTheEndOfItsWorkAndMoreWork) {
  const auto pause = std::chrono::milliseconds(20);
  first_.enqueue([&] { std::this_thread::sleep_for(pause); });
  first_.synchronize();
  const double busy = first_.idle_seconds();
  std::this_thread::sleep_for(pause);
  first_.enqueue([] {});
  const double idle = first_.idle_seconds();
  std::this_thread::sleep_for(pause);
  first_.synchronize();

  EXPECT_LT(busy, 0.01);
  EXPECT_GE(idle, 0.02);
  EXPECT_LT(first_.idle_seconds(), idle + 0.01);  // work enqueued and not waited for is no idleness
}

TEST_F(CpuStreams, RunsInOrder) {
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    first_.enqueue([&order, i] { order.push_back(i); });
  }

  first_.synchronize();

  std::vector<int> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST_F(CpuStreams, EnqueueDoesNotWait) {
  Gate gate;
  std::atomic<bool> ran{false};

  first_.enqueue(gate.work());
  first_.enqueue([&] { ran = true; });

  EXPECT_FALSE(ran);
  gate.open();
  first_.synchronize();
  EXPECT_TRUE(ran);
}

TEST_F(CpuStreams, StreamsRunAtTheSameTime) {
  Gate gate;
  bool ran = false;
  first_.enqueue(gate.work());

  second_.enqueue([&] { ran = true; });
  second_.synchronize();

  EXPECT_TRUE(ran);
  gate.open();
}

TEST_F(CpuStreams, AnEventOrdersTwoStreams) {
  Gate gate;
  std::vector<int> order;
  first_.enqueue(gate.work());
  first_.enqueue([&] { order.push_back(1); });
  const Event event = first_.record();

  second_.wait(event);
  second_.enqueue([&] { order.push_back(2); });
  gate.open();
  second_.synchronize();

  EXPECT_THAT(order, ElementsAre(1, 2));
}

TEST_F(CpuStreams, AnEventCanBeWaitedForAtTheHostAndAfterItsStream) {
  Event event;
  int value = 0;
  {
    CpuStream stream(clock_);
    stream.enqueue([&] { value = 1; });
    event = stream.record();
    event.synchronize();
    EXPECT_EQ(value, 1);
  }
  EXPECT_NO_THROW(event.synchronize());
  second_.wait(event);
  EXPECT_NO_THROW(second_.synchronize());
}

TEST_F(CpuStreams, AnEmptyEventIsReached) {
  EXPECT_NO_THROW(Event().synchronize());
  first_.wait(Event());
  EXPECT_NO_THROW(first_.synchronize());
}

TEST_F(CpuStreams, AStreamMayWaitForItsOwnEvent) {
  first_.wait(first_.record());
  EXPECT_NO_THROW(first_.synchronize());
}

TEST_F(CpuStreams, RefusesAnEventOfAnotherBackend) {
  class Foreign final : public Event::Impl {
    void synchronize() override {}
  };
  EXPECT_THAT(failure_of([&] { first_.wait(Event(std::make_shared<Foreign>())); }), HasSubstr("another backend"));
}

TEST_F(CpuStreams, SynchronizeThrowsTheFirstErrorAgainAndAgain) {
  first_.enqueue([] { throw Error(ErrorKind::input, "first"); });
  try {
    first_.enqueue([] { throw Error(ErrorKind::input, "second"); });
  } catch (const Error&) {
    // The stream may have failed already, and then refuses.
  }

  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_EQ(failure_of([&] { first_.synchronize(); }), "first");
  }
}

TEST_F(CpuStreams, ContextsOfACallerDoNotStickToTheError) {
  first_.enqueue([] { throw Error(ErrorKind::input, "first"); });

  for (int repeat = 0; repeat < 2; ++repeat) {
    try {
      with_context("waiting", [&] { first_.synchronize(); });
      FAIL() << "expected an Error";
    } catch (const Error& error) {
      EXPECT_EQ(error.one_line(), "while waiting: first");
    }
  }
}

TEST_F(CpuStreams, AFailedStreamRunsNothingMore) {
  Gate gate;
  bool ran = false;
  first_.enqueue(gate.work());
  first_.enqueue([] { throw Error(ErrorKind::input, "failed"); });
  first_.enqueue([&] { ran = true; });
  gate.open();

  EXPECT_EQ(failure_of([&] { first_.synchronize(); }), "failed");
  EXPECT_FALSE(ran);
  EXPECT_EQ(failure_of([&] { first_.enqueue([] {}); }), "failed");
}

TEST_F(CpuStreams, AFailureReachesThoseWhoWait) {
  Gate gate;
  bool ran = false;
  first_.enqueue(gate.work());
  first_.enqueue([] { throw Error(ErrorKind::input, "failed"); });
  const Event event = first_.record();
  second_.wait(event);
  second_.enqueue([&] { ran = true; });
  gate.open();

  EXPECT_EQ(failure_of([&] { event.synchronize(); }), "failed");
  EXPECT_EQ(failure_of([&] { second_.synchronize(); }), "failed");
  EXPECT_FALSE(ran);
}

TEST_F(CpuStreams, AMarkBeforeTheFailureIsReachedWithoutIt) {
  const Event before = first_.record();
  first_.enqueue([] { throw Error(ErrorKind::input, "failed"); });

  EXPECT_EQ(failure_of([&] { first_.synchronize(); }), "failed");
  EXPECT_NO_THROW(before.synchronize());
}

TEST_F(CpuStreams, OtherExceptionsBecomeInternalErrors) {
  first_.enqueue([] { throw std::runtime_error("bad luck"); });
  EXPECT_EQ(failure_of([&] { first_.synchronize(); }), "bad luck");
  second_.enqueue([] { throw 7; });
  EXPECT_THAT(failure_of([&] { second_.synchronize(); }), HasSubstr("not an exception"));
}

TEST(CpuStream, TheDestructorRunsWhatIsQueued) {
  std::atomic<int> runs{0};
  {
    CpuStream stream(std::make_shared<WorkClock>());
    for (int i = 0; i < 50; ++i) {
      stream.enqueue([&] { ++runs; });
    }
  }
  EXPECT_EQ(runs, 50);
}

TEST(CpuStream, TheDestructorOfAFailedStreamDoesNotThrow) {
  CpuStream stream(std::make_shared<WorkClock>());
  stream.enqueue([] { throw Error(ErrorKind::input, "failed"); });
}

TEST(CpuStream, WhatWorkCapturedGoesBeforeItCountsAsDone) {
  auto clock = std::make_shared<WorkClock>();
  CpuStream stream(clock);
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> seen = held;

  stream.enqueue([held = std::move(held)] {});
  stream.synchronize();

  EXPECT_TRUE(seen.expired());
}

}  // namespace
}  // namespace gptqd
