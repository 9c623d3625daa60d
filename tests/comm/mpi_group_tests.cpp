#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/group.hpp"
#include "kernels/base/error.hpp"
#include "tests/comm/mpi_main.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

/// `count` bytes that differ from index to index and seed to seed.
std::vector<std::byte> some_bytes(std::size_t count, int seed) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<std::byte>(i * 7 + static_cast<std::size_t>(seed) * 31 + i / 256);
  }
  return bytes;
}

/// A group of its own for each test: what one leaves behind cannot reach the next.
class GroupTest : public ::testing::Test {
 protected:
  std::unique_ptr<Group> group = test::world().group().split(0, test::world().rank());
  int rank = group->rank();
  int size = group->size();
  int after = (rank + 1) % size;
  int before = (rank + size - 1) % size;
};

TEST_F(GroupTest, BarrierHoldsUntilAllHaveCome) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  if (rank == size - 1) {
    std::this_thread::sleep_for(100ms);
  }

  group->barrier("test");

  if (size > 1 && rank != size - 1) {
    EXPECT_GE(Clock::now() - start, 20ms);
  }
}

TEST_F(GroupTest, BroadcastReachesAllFromAnyRoot) {
  for (int root = 0; root < size; ++root) {
    auto bytes = some_bytes(1000, rank);

    group->broadcast(bytes, root, "test");

    EXPECT_EQ(bytes, some_bytes(1000, root));
  }
}

TEST_F(GroupTest, BroadcastBytesBringsTheLength) {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{5000}}) {
    const int root = size - 1;

    const auto got = group->broadcast_bytes(rank == root ? some_bytes(count, 1) : some_bytes(3, 2), root, "test");

    EXPECT_EQ(got, some_bytes(count, 1));
  }
}

TEST_F(GroupTest, BroadcastStringReplacesTheOthersText) {
  EXPECT_EQ(group->broadcast_string(rank == 0 ? "from the root" : "mine", 0, "test"), "from the root");
  EXPECT_EQ(group->broadcast_string(rank == 0 ? "" : "mine", 0, "test"), "");
}

TEST_F(GroupTest, SendAndReceiveAroundTheRing) {
  auto request = group->isend(some_bytes(0, 0), after, "nothing");
  request.wait();
  std::vector<std::byte> nothing;
  group->receive(nothing, before, "nothing");
  const auto mine = some_bytes(100000, rank);
  std::vector<std::byte> got(mine.size());

  auto sending = group->isend(mine, after, "test");
  group->receive(got, before, "test");
  sending.wait();

  EXPECT_EQ(got, some_bytes(100000, before));
}

TEST_F(GroupTest, MessagesArriveInTheOrderSent) {
  std::vector<std::vector<std::byte>> sent;
  std::vector<std::vector<std::byte>> got(20, std::vector<std::byte>(64));
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) {
    sent.push_back(some_bytes(64, 100 * rank + i));
    requests.push_back(group->ireceive(got[static_cast<std::size_t>(i)], before, "test"));
  }
  for (const auto& message : sent) {
    requests.push_back(group->isend(message, after, "test"));
  }

  for (auto& request : requests) {
    request.wait();
  }

  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(got[static_cast<std::size_t>(i)], some_bytes(64, 100 * before + i));
  }
}

TEST_F(GroupTest, LongMessagesTravelInPieces) {
  group->set_max_message_bytes(7);
  for (const std::size_t count : {0u, 1u, 6u, 7u, 8u, 14u, 1000u}) {
    const auto mine = some_bytes(count, rank);
    std::vector<std::byte> got(count);
    const auto ticks = test::world().progress().ticks();

    auto sending = group->isend(mine, after, "test");
    group->receive(got, before, "test");
    sending.wait();
    auto broadcast = some_bytes(count, rank);
    group->broadcast(broadcast, size - 1, "test");
    const auto gathered = group->all_gather_bytes(mine, "test");

    EXPECT_EQ(got, some_bytes(count, before));
    EXPECT_EQ(broadcast, some_bytes(count, size - 1));
    EXPECT_EQ(gathered.at(static_cast<std::size_t>(before)), got);
    EXPECT_GE(test::world().progress().ticks() - ticks, 2 * ((count + 6) / 7)) << "each piece is a tick";
  }
}

TEST_F(GroupTest, MegabytesTravelInPieces) {
  group->set_max_message_bytes(1 << 20);
  const auto mine = some_bytes(5'000'001, rank);
  std::vector<std::byte> got(mine.size());

  auto sending = group->isend(mine, after, "test");
  group->receive(got, before, "test");
  sending.wait();
  auto broadcast = some_bytes(5'000'001, rank);
  group->broadcast(broadcast, 0, "test");

  EXPECT_EQ(got, some_bytes(5'000'001, before));
  EXPECT_EQ(broadcast, some_bytes(5'000'001, 0));
}

TEST_F(GroupTest, MaxMessageBytesHasBounds) {
  EXPECT_THROW(group->set_max_message_bytes(0), Error);
  EXPECT_THROW(group->set_max_message_bytes((std::int64_t{1} << 30) + 1), Error);
}

TEST_F(GroupTest, AllGatherKeepsRankOrder) {
  const auto values = group->all_gather(10 * rank - 5, "test");

  ASSERT_EQ(values.size(), static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    EXPECT_EQ(values[static_cast<std::size_t>(r)], 10 * r - 5);
  }
}

TEST_F(GroupTest, AllGatherBytesTakesUnevenLengths) {
  const auto all = group->all_gather_bytes(some_bytes(static_cast<std::size_t>(rank * 1001), rank), "test");

  ASSERT_EQ(all.size(), static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    EXPECT_EQ(all[static_cast<std::size_t>(r)], some_bytes(static_cast<std::size_t>(r * 1001), r));
  }
}

TEST_F(GroupTest, AllMaxFindsTheOneThatWantsToStop) {
  EXPECT_EQ(group->all_max(rank == size - 1 ? 1 : 0, "test"), 1);
  EXPECT_EQ(group->all_max(-rank - 1, "test"), -1);
}

TEST_F(GroupTest, SplitsUnevenlyAndOrdersByKey) {
  // Ranks 0, 2 and 1, 3, in reverse.
  const auto part = group->split(rank % 2, -rank);

  const int members = rank % 2 == 0 ? (size + 1) / 2 : size / 2;
  EXPECT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), members - 1 - rank / 2);
  for (int r = 0; r < members; ++r) {
    EXPECT_EQ(part->world_rank(r), 2 * (members - 1 - r) + rank % 2);
  }
  EXPECT_THAT(part->all_gather(rank % 2, "test"), Each(rank % 2));
}

TEST_F(GroupTest, SplitInheritsTheMessageLength) {
  group->set_max_message_bytes(123);

  EXPECT_EQ(group->split(0, 0)->max_message_bytes(), 123);
}

TEST_F(GroupTest, GroupsDoNotMixTheirMessages) {
  const auto other = group->split(0, rank);
  auto mine = some_bytes(8, 1);
  auto theirs = some_bytes(8, 2);
  auto first = group->isend(mine, after, "test");
  auto second = other->isend(theirs, after, "test");
  std::vector<std::byte> got(8);

  other->receive(got, before, "test");

  EXPECT_EQ(got, theirs);
  group->receive(got, before, "test");
  EXPECT_EQ(got, mine);
  first.wait();
  second.wait();
}

TEST_F(GroupTest, ANonBlockingBroadcastWaitsLater) {
  auto bytes = some_bytes(300000, rank);
  auto other = some_bytes(10, rank);

  auto request = group->ibroadcast(bytes, 0, "first");
  auto request_other = group->ibroadcast(other, size - 1, "second");
  request_other.wait();
  request.wait();
  request.wait();  // a second wait returns at once

  EXPECT_EQ(bytes, some_bytes(300000, 0));
  EXPECT_EQ(other, some_bytes(10, size - 1));
}

TEST_F(GroupTest, AShorterMessageThanExpectedIsAnError) {
  const auto sent = some_bytes(3, rank);
  auto sending = group->isend(sent, after, "test");
  std::vector<std::byte> got(5);
  try {
    group->receive(got, before, "codes of fc1");
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), AllOf(HasSubstr("codes of fc1"), HasSubstr(fmt::format("from rank {}", before)),
                                       HasSubstr("3 bytes"), HasSubstr("expected 5")));
  }
  sending.wait();
}

TEST_F(GroupTest, ALongerMessageThanExpectedIsAnError) {
  const auto sent = some_bytes(5, rank);
  auto sending = group->isend(sent, after, "test");
  std::vector<std::byte> got(3);

  EXPECT_THROW(group->receive(got, before, "codes of fc1"), Error);

  sending.wait();
}

TEST_F(GroupTest, ADroppedReceiveIsWithdrawn) {
  std::vector<std::byte> dropped(4);
  { const auto request = group->ireceive(dropped, before, "test"); }
  group->barrier("test");
  const auto sent = some_bytes(4, 9);
  auto sending = group->isend(sent, after, "test");
  std::vector<std::byte> got(4);

  group->receive(got, before, "test");

  EXPECT_EQ(got, sent);
  EXPECT_THAT(dropped, Each(std::byte{0}));
  sending.wait();
}

TEST_F(GroupTest, WaitsForWhatOthersDoByOtherMeans) {
  int polls = 0;

  group->wait_until("test", [&] { return ++polls == 5; });

  EXPECT_EQ(polls, 5);
  EXPECT_THROW(group->wait_until("test", []() -> bool { throw Error(ErrorKind::io, "gone"); }), Error);
}

TEST_F(GroupTest, RefusesRanksOutsideTheGroup) {
  std::vector<std::byte> bytes(4);

  EXPECT_THROW(group->send(bytes, size, "test"), Error);
  EXPECT_THROW(group->receive(bytes, -1, "test"), Error);
  EXPECT_THROW(group->broadcast(bytes, size, "test"), Error);
}

TEST_F(GroupTest, ThreadsMayUseGroupsOfTheirOwn) {
  const auto other = group->split(0, rank);
  const auto chatter = [](Group& with, int seed) {
    int wrong = 0;
    for (int i = 0; i < 50; ++i) {
      auto bytes = some_bytes(777, with.rank());
      with.broadcast(bytes, i % with.size(), "test");
      wrong += bytes == some_bytes(777, i % with.size()) ? 0 : 1;
      wrong += with.all_max(seed + i, "test") == seed + i ? 0 : 1;
    }
    return wrong;
  };
  int wrong_there = -1;
  std::thread thread([&] { wrong_there = chatter(*other, 1000); });

  const int wrong_here = chatter(*group, 0);

  thread.join();
  EXPECT_EQ(wrong_here, 0);
  EXPECT_EQ(wrong_there, 0);
}

}  // namespace
}  // namespace gptqd::comm
