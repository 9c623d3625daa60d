#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/stall_judge.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;
using ::testing::StartsWith;

/// A job of which every rank reports each 0.25 s as told, judged after each round, with stall_seconds = 5.
class StallJudgeTest : public ::testing::Test {
 protected:
  using Time = StallJudge::Time;

  struct Rank {
    RankStatus status;
    bool ticking = false;
    bool reporting = true;
  };

  explicit StallJudgeTest() : ranks(3) {}

  static Rank computing(std::string activity) { return {.status = {.activity = std::move(activity)}}; }
  static Rank ticking() { return {.status = {}, .ticking = true}; }
  static Rank waiting(std::string what) { return {.status = {.waiting = true, .waiting_for = std::move(what)}}; }

  /// The first verdict within `duration`.
  std::optional<std::string> run(std::chrono::duration<double> duration) {
    const auto end = now + std::chrono::duration_cast<Time::duration>(duration);
    while (now < end) {
      now += 250ms;
      for (std::size_t r = 0; r < ranks.size(); ++r) {
        if (ranks[r].ticking) {
          ++ranks[r].status.ticks;
        }
        if (ranks[r].reporting) {
          judge.heard(static_cast<int>(r), ranks[r].status, now);
        }
      }
      if (auto verdict = judge.verdict(now)) {
        return verdict;
      }
    }
    return std::nullopt;
  }

  Time now{};
  std::vector<Rank> ranks;
  StallJudge judge{3, 5s, 250ms, now};
};

TEST_F(StallJudgeTest, AWaitForASlowRankLastsAsLongAsItTakes) {
  ranks = {waiting("weights of block 3"), ticking(), waiting("a barrier")};

  EXPECT_EQ(run(1000s), std::nullopt);
}

TEST_F(StallJudgeTest, SilenceNamesTheRankAndItsLastActivity) {
  ranks = {waiting("a barrier"), computing("block 3, mlp_in"), waiting("a barrier")};
  run(1s);

  ranks[1].reporting = false;

  EXPECT_EQ(run(4.5s), std::nullopt);
  EXPECT_THAT(run(1s),
              Optional(AllOf(StartsWith("rank 1 has been silent for 5 s (block 3, mlp_in)"), HasSubstr("stopped"))));
}

TEST_F(StallJudgeTest, ASilentRankThatWaitedIsNoDeadlock) {
  ranks = {waiting("a"), waiting("b"), waiting("c")};
  run(1s);

  ranks[2].reporting = false;

  EXPECT_THAT(run(10s), Optional(StartsWith("rank 2 has been silent")));
}

TEST_F(StallJudgeTest, AComputationWithoutTicksIsAStall) {
  ranks = {waiting("a barrier"), computing("block 3, mlp_in"), ticking()};

  EXPECT_EQ(run(4.6s), std::nullopt);
  EXPECT_THAT(run(1s), Optional(StartsWith("rank 1 has made no progress for 5 s (block 3, mlp_in)")));
}

TEST_F(StallJudgeTest, AComputationAfterALongWaitStartsAnew) {
  ranks = {ticking(), waiting("a barrier"), ticking()};
  run(100s);

  ranks[1] = computing("block 4");

  EXPECT_EQ(run(4.5s), std::nullopt);
  EXPECT_THAT(run(1s), Optional(StartsWith("rank 1 has made no progress")));
}

TEST_F(StallJudgeTest, ALongHostStepOwesNoTicks) {
  ranks = {waiting("the tokens"), waiting("the tokens"), computing("")};
  ranks[2].status.long_step = true;

  EXPECT_EQ(run(1000s), std::nullopt);
  ranks[2].reporting = false;
  EXPECT_THAT(run(6s), Optional(StartsWith("rank 2 has been silent for 5 s:")));
}

TEST_F(StallJudgeTest, RanksThatWaitForOneAnotherAreADeadlock) {
  ranks = {waiting("x from rank 1"), waiting("y from rank 2"), waiting("z from rank 0")};
  ranks[1].status.activity = "block 7";

  EXPECT_EQ(run(4.6s), std::nullopt);
  EXPECT_THAT(run(1s), Optional(AllOf(StartsWith("rank 0 waits in x from rank 1"),
                                      HasSubstr("rank 1 waits in y from rank 2 (block 7)"),
                                      HasSubstr("rank 2 waits in z from rank 0"), HasSubstr("for 5 s"))));
}

TEST_F(StallJudgeTest, WaitsThatMakeProgressAreNoDeadlock) {
  ranks = {waiting("x"), waiting("y"), waiting("z")};
  ranks[2].ticking = true;  // pieces of a large message arrive

  EXPECT_EQ(run(1000s), std::nullopt);
}

TEST_F(StallJudgeTest, ARankThatLeftMayBeSilent) {
  ranks = {ticking(), ticking(), ticking()};
  run(1s);

  judge.left(1);
  ranks[1].reporting = false;

  EXPECT_EQ(run(100s), std::nullopt);
}

TEST_F(StallJudgeTest, ADeadlockOfTheOthersNamesThemOnly) {
  ranks = {waiting("x"), ticking(), waiting("z")};
  judge.left(1);
  ranks[1].reporting = false;

  EXPECT_THAT(run(6s), Optional(AllOf(HasSubstr("rank 0"), HasSubstr("rank 2"), Not(HasSubstr("rank 1 ")))));
}

TEST_F(StallJudgeTest, ASuspendedJobStartsAnew) {
  ranks = {computing("a"), waiting("b"), ticking()};
  run(2s);

  now += 1h;
  judge.restart(now);

  EXPECT_EQ(judge.verdict(now), std::nullopt);
  EXPECT_EQ(run(4.5s), std::nullopt);
  EXPECT_THAT(run(1s), Optional(StartsWith("rank 0 has made no progress")));
}

TEST(StallJudge, ListsFewOfManyWaits) {
  const StallJudge::Time start{};
  StallJudge judge(100, 5s, 250ms, start);
  for (int r = 0; r < 100; ++r) {
    judge.heard(r, {.waiting = true, .waiting_for = "a barrier"}, start);
    judge.heard(r, {.waiting = true, .waiting_for = "a barrier"}, start + 5s);
  }

  const auto verdict = judge.verdict(start + 5s);

  EXPECT_THAT(verdict,
              Optional(AllOf(HasSubstr("rank 7 waits"), Not(HasSubstr("rank 8 waits")), HasSubstr("and 92 more"))));
}

TEST(RollCall, NamesTheRanksThatWereNotHeardSinceAndHaveNotLeft) {
  const StallJudge::Time start;
  StallJudge judge(4, 5s, 250ms, start);
  judge.heard(1, {.activity = "block 3, mlp_in"}, start + 1s);
  judge.heard(2, {}, start + 3s);
  judge.left(3);

  EXPECT_EQ(judge.not_heard_since(start + 2s), "rank 0 and rank 1 (block 3, mlp_in)");
  EXPECT_EQ(judge.not_heard_since(start), "");
}

}  // namespace
}  // namespace gptqd::comm
