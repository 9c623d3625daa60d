#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/communicator.hpp"
#include "comm/nccl/nccl_communicator.hpp"
#include "comm/tree_reduction.hpp"
#include "tests/comm/mpi_main.hpp"
#include "tests/comm/tree_fixture.hpp"

namespace gptqd::comm {
namespace {

using test::Heap;
using test::ImmediateStream;
using ::testing::Each;
using ::testing::HasSubstr;

class CommunicatorTest : public ::testing::Test {
 protected:
  std::unique_ptr<Communicator> communicator = make_mpi_communicator(test::world().group());
  int rank = communicator->rank();
  int size = communicator->size();
  ImmediateStream stream;
};

TEST_F(CommunicatorTest, BroadcastWaitsForTheStreamFirst) {
  for (int root = 0; root < size; ++root) {
    std::vector<float> data(1000, static_cast<float>(rank));
    const int before = stream.synchronized;

    auto pending = communicator->broadcast(stream, data.data(), 4000, root, "test");
    EXPECT_GT(stream.synchronized, before);
    pending.wait();

    EXPECT_THAT(data, Each(static_cast<float>(root)));
  }
}

TEST_F(CommunicatorTest, SendAndReceiveAroundTheRing) {
  const std::vector<int> mine(500, rank);
  std::vector<int> got(500, -1);

  auto sending = communicator->send(stream, mine.data(), 2000, (rank + 1) % size, "test");
  auto receiving = communicator->receive(stream, got.data(), 2000, (rank + size - 1) % size, "test");
  receiving.wait();
  sending.wait();

  EXPECT_THAT(got, Each((rank + size - 1) % size));
}

TEST_F(CommunicatorTest, AllGatherTakesUnevenAndEmptyParts) {
  // Rank r has r * 3 bytes (rank 0 none), laid out back to front with a gap of one byte.
  std::vector<Part> parts(static_cast<std::size_t>(size));
  std::int64_t end = 0;
  for (int r = size - 1; r >= 0; --r) {
    parts[static_cast<std::size_t>(r)] = {.offset_bytes = end, .bytes = 3 * r};
    end += 3 * r + 1;
  }
  std::vector<char> whole(static_cast<std::size_t>(end), '.');
  const auto fill = [&](std::vector<char>& array, int r) {
    const auto& part = parts[static_cast<std::size_t>(r)];
    std::fill_n(array.begin() + part.offset_bytes, part.bytes, static_cast<char>('a' + r));
  };
  auto expected = whole;
  for (int r = 0; r < size; ++r) {
    fill(expected, r);
  }
  fill(whole, rank);

  auto other = whole;
  const std::vector<Gathered> arrays{{.whole = whole.data(), .parts = parts}, {.whole = other.data(), .parts = parts}};

  communicator->all_gather(stream, arrays, "test");

  EXPECT_EQ(whole, expected);
  EXPECT_EQ(other, expected);
}

TEST_F(CommunicatorTest, AllGatherNeedsAPartPerRank) {
  char whole[8] = "";
  const Gathered array{.whole = whole, .parts = std::vector<Part>(static_cast<std::size_t>(size) + 1)};

  EXPECT_THROW(communicator->all_gather(stream, {&array, 1}, "test"), Error);
}

TEST_F(CommunicatorTest, RefusesNegativeLengths) {
  char byte = 0;

  EXPECT_THROW(communicator->broadcast(stream, &byte, -1, 0, "test"), Error);
}

TEST_F(CommunicatorTest, DoesNotMixWithItsGroup) {
  auto& group = test::world().group();
  std::vector<int> data(10, rank);
  std::vector<int> control(10, -1);
  std::vector<int> got(10, -1);
  const int after = (rank + 1) % size;
  const int before = (rank + size - 1) % size;
  std::vector<int> other(10, 100 + rank);

  auto first = communicator->send(stream, data.data(), 40, after, "test");
  auto second = group.isend(std::as_bytes(std::span(other)), after, "test");
  group.receive(std::as_writable_bytes(std::span(control)), before, "test");
  communicator->receive(stream, got.data(), 40, before, "test").wait();
  first.wait();
  second.wait();

  EXPECT_THAT(control, Each(100 + before));
  EXPECT_THAT(got, Each(before));
}

/// One tree's sum to its owner, nothing else meanwhile.
void reduce_tree(Communicator& communicator, Stream& stream, TreeSum& tree, int owner, AnyView<2> result) {
  TreeReduction reduction(communicator);
  reduction.add(tree, owner, result, "panel");
  reduction.start(stream, "panel");
  reduction.finish(stream, tree);
}

template <class T>
void expect_tree_bits(Communicator& communicator, int leaves, int owner) {
  constexpr Shape<2> shape{9, 13};
  Heap heap;
  ImmediateStream stream;
  {
    TreeSum tree(test::operations_on(heap), dtype_of<T>, shape, leaves);
    test::push_leaves<T>(stream, tree, leaves_of(communicator.rank(), communicator.size(), leaves));
    // Rows with a gap, as a panel of H has.
    std::vector<T> memory(9 * 20, T{-7});
    const TensorView<T, 2> result(memory.data(), shape, 20);

    reduce_tree(communicator, stream, tree, owner, result);

    EXPECT_TRUE(tree.nodes().empty());
    if (communicator.rank() == owner) {
      const auto expected = test::naive_tree<T>(0, leaves, shape);
      for (std::int64_t i = 0; i < 9; ++i) {
        EXPECT_EQ(std::vector<T>(result.row(i), result.row(i) + 13),
                  std::vector<T>(expected.begin() + i * 13, expected.begin() + (i + 1) * 13));
        EXPECT_TRUE(i == 8 || result.row(i)[13] == T{-7}) << "the gap was written";
      }
    } else {
      EXPECT_THAT(memory, Each(T{-7}));
    }
    EXPECT_LE(heap.most, 2 * std::log2(leaves) + 2);
  }
  EXPECT_EQ(heap.alive, 0);
}

TEST_F(CommunicatorTest, TreeReductionGivesTheSameBitsAtAnyRankCount) {
  for (const int leaves : {1, 2, 8, 16}) {
    for (int owner = 0; owner < size; ++owner) {
      SCOPED_TRACE(fmt::format("{} leaves, owner {}", leaves, owner));
      expect_tree_bits<float>(*communicator, leaves, owner);
      expect_tree_bits<double>(*communicator, leaves, owner);
    }
  }
}

TEST_F(CommunicatorTest, TreeReductionMayBeRepeatedWithTheSameBuffers) {
  Heap heap;
  TreeSum tree(test::operations_on(heap), DType::f32, {4, 6}, 8);
  const auto mine = leaves_of(rank, size, 8);
  int most = 0;
  for (int panel = 0; panel < 5; ++panel) {
    const Shape<2> shape{4 - panel % 2, 6};
    tree.restart(shape);
    test::push_leaves<float>(stream, tree, mine);
    std::vector<float> result(24);

    reduce_tree(*communicator, stream, tree, 0, TensorView<float, 2>(result.data(), shape));

    if (rank == 0) {
      result.resize(static_cast<std::size_t>(shape[0] * 6));
      EXPECT_EQ(result, test::naive_tree<float>(0, 8, shape));
    }
    if (panel == 0) {
      most = heap.most;
    }
  }
  EXPECT_EQ(heap.most, most);
}

TEST_F(CommunicatorTest, TreesOfSeveralOwnersTravelTogetherWhileTheNextOnesGrow) {
  Heap heap;
  TreeSum tree(test::operations_on(heap), DType::f32, {6, 5}, 8);
  const auto mine = leaves_of(rank, size, 8);
  const auto shape_of = [](int k) { return Shape<2>{6 - k, 5}; };
  std::vector<std::vector<float>> results(6, std::vector<float>(30));
  TreeReduction on_the_way(*communicator);
  for (int k = 0; k < 6;) {
    TreeReduction next(*communicator);
    for (const int end = std::min(6, k + size); k < end; ++k) {
      tree.restart(shape_of(k));
      test::push_leaves<float>(stream, tree, mine);
      const auto at = static_cast<std::size_t>(k);
      next.add(tree, k % size, TensorView<float, 2>(results[at].data(), shape_of(k)), "panel");
    }
    next.start(stream, "panels");
    on_the_way.finish(stream, tree);
    on_the_way = std::move(next);
  }
  on_the_way.finish(stream, tree);

  for (int k = 0; k < 6; ++k) {
    auto& result = results[static_cast<std::size_t>(k)];
    if (k % size == rank) {
      result.resize(static_cast<std::size_t>((6 - k) * 5));
      EXPECT_EQ(result, test::naive_tree<float>(0, 8, shape_of(k)));
    } else {
      EXPECT_THAT(result, Each(0.0f));
    }
  }
}

TEST_F(CommunicatorTest, ExchangesMessagesWithAllRanksAtOnce) {
  const auto count = static_cast<std::size_t>(size);
  std::vector<int> sent(count);
  std::vector<int> got(count, -1);
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (int peer = 0; peer < size; ++peer) {
    const auto at = static_cast<std::size_t>(peer);
    sent[at] = 100 * rank + peer;
    if (peer != rank) {
      sends.push_back({.peer = peer, .data = &sent[at], .bytes = 4});
      receives.push_back({.peer = peer, .data = &got[at], .bytes = 4});
    }
  }

  communicator->exchange(stream, sends, receives, "test").wait();

  for (int peer = 0; peer < size; ++peer) {
    EXPECT_EQ(got[static_cast<std::size_t>(peer)], peer == rank ? -1 : 100 * peer + rank);
  }
  EXPECT_EQ(communicator->totals().bytes, 8 * (size - 1));
}

TEST_F(CommunicatorTest, CountsTheTimeThatTransfersTake) {
  if (rank == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  int value = 0;

  communicator->broadcast(stream, &value, sizeof(value), 0, "test").wait();

  const auto totals = communicator->totals();
  EXPECT_EQ(totals.bytes, size > 1 ? 4 : 0);
  EXPECT_LE(totals.exposed_seconds, totals.seconds);
  if (rank != 0) {
    EXPECT_GE(totals.exposed_seconds, 0.01);
  }
}

TEST_F(CommunicatorTest, TreeReductionNeedsAllOwnLeaves) {
  Heap heap;
  TreeSum tree(test::operations_on(heap), DType::f32, {2, 2}, 8);
  float result[4];
  const TensorView<float, 2> view(result, {2, 2});
  test::push_leaves<float>(stream, tree, {.first = leaves_of(rank, size, 8).first, .count = 1});

  EXPECT_THROW(reduce_tree(*communicator, stream, tree, 0, view), Error);
  EXPECT_THROW(reduce_tree(*communicator, stream, tree, size, view), Error);
}

TEST(Nccl, IsAbsentWithAMessageOrRefusesHostMemory) {
  const auto backend = make_cpu_backend({.threads = 1});
  try {
    make_nccl_communicator(test::world().group(), *backend);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), ::testing::AnyOf(HasSubstr("cmake --preset cuda"), HasSubstr("memory is the host's")));
  }
}

TEST(MakeCommunicator, GoesOverMpiForMemoryOfTheHost) {
  const auto backend = make_cpu_backend({.threads = 1});
  const auto stream = backend->create_stream();
  const auto communicator = make_communicator(test::world().group(), *backend);
  int value = communicator->rank() == 0 ? 7 : 0;

  communicator->broadcast(*stream, &value, sizeof(value), 0, "a number").wait();

  EXPECT_EQ(value, 7);
}

}  // namespace
}  // namespace gptqd::comm
