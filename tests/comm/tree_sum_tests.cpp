#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/tree_sum.hpp"
#include "tests/comm/tree_fixture.hpp"

namespace gptqd::comm {
namespace {

using test::Heap;
using test::ImmediateStream;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr Shape<2> shape{5, 7};

template <class T>
std::vector<T> values_of(AnyView<2> matrix) {
  const auto view = matrix.as<T>();
  return {view.data, view.data + view.size()};
}

TEST(LeavesOf, CutsIntoAdjoiningRangesThatCoverAll) {
  for (const int leaves : {1, 2, 8, 16}) {
    for (int ranks = 1; ranks <= 20; ++ranks) {
      int next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto range = leaves_of(rank, ranks, leaves);
        EXPECT_EQ(range.first, next);
        EXPECT_LE(range.count, leaves / ranks + 1);
        next = range.end();
      }
      EXPECT_EQ(next, leaves);
    }
  }
}

TEST(LeavesOf, ThreeRanksShareEightLeavesUnevenly) {
  EXPECT_EQ(leaves_of(0, 3, 8), (LeafRange{0, 2}));
  EXPECT_EQ(leaves_of(1, 3, 8), (LeafRange{2, 3}));
  EXPECT_EQ(leaves_of(2, 3, 8), (LeafRange{5, 3}));
}

TEST(LeavesOf, RefusesRanksOutsideTheGroup) {
  EXPECT_THROW(leaves_of(3, 3, 8), Error);
  EXPECT_THROW(leaves_of(-1, 3, 8), Error);
  EXPECT_THROW(leaves_of(0, 1, 0), Error);
}

TEST(MostBuffers, CountsTheNodesThatWaitAndTheLeafThatIsMade) {
  EXPECT_EQ(most_buffers({0, 0}), 0);
  EXPECT_EQ(most_buffers({0, 1}), 1);
  EXPECT_EQ(most_buffers({0, 2}), 2);
  EXPECT_EQ(most_buffers({0, 8}), 4);
  EXPECT_EQ(most_buffers({2, 3}), 2);
  EXPECT_EQ(most_buffers({5, 3}), 3);
}

TEST(NodesOf, AreTheLargestAlignedPieces) {
  EXPECT_THAT(nodes_of({0, 8}), ElementsAre(LeafRange{0, 8}));
  EXPECT_THAT(nodes_of({5, 3}), ElementsAre(LeafRange{5, 1}, LeafRange{6, 2}));
  EXPECT_THAT(nodes_of({2, 3}), ElementsAre(LeafRange{2, 2}, LeafRange{4, 1}));
  EXPECT_THAT(nodes_of({1, 14}), ElementsAre(LeafRange{1, 1}, LeafRange{2, 2}, LeafRange{4, 4}, LeafRange{8, 4},
                                             LeafRange{12, 2}, LeafRange{14, 1}));
  EXPECT_THAT(nodes_of({3, 0}), IsEmpty());
}

class TreeSumLeaves : public ::testing::TestWithParam<int> {};

TEST_P(TreeSumLeaves, GivesTheBitsOfTheNaiveTree) {
  const int leaves = GetParam();
  Heap heap;
  ImmediateStream stream;
  {
    TreeSum tree(test::operations_on(heap), DType::f32, shape, leaves);

    test::push_leaves<float>(stream, tree, {0, leaves});

    const auto nodes = tree.take_nodes();
    ASSERT_EQ(nodes.size(), 1u);
    EXPECT_EQ(values_of<float>(tree.view(nodes[0])), test::naive_tree<float>(0, leaves, shape));
    EXPECT_LE(heap.most, 2 * std::log2(leaves) + 2);
  }
  EXPECT_EQ(heap.alive, 0);
}

TEST_P(TreeSumLeaves, KeepsTheNodesOfAnyRange) {
  const int leaves = GetParam();
  Heap heap;
  ImmediateStream stream;
  for (int first = 0; first <= leaves; ++first) {
    for (int count = 0; first + count <= leaves; ++count) {
      TreeSum tree(test::operations_on(heap), DType::f64, shape, leaves);

      test::push_leaves<double>(stream, tree, {first, count});

      EXPECT_EQ(tree.nodes(), nodes_of({first, count}));
      for (const auto& node : tree.take_nodes()) {
        EXPECT_EQ(values_of<double>(tree.view(node)),
                  test::naive_tree<double>(node.leaves.first, node.leaves.count, shape));
      }
    }
  }
  EXPECT_EQ(heap.alive, 0);
}

INSTANTIATE_TEST_SUITE_P(, TreeSumLeaves, ::testing::Values(1, 2, 8, 16));

TEST(TreeSum, TheOrderOfAdditionsShowsInTheBits) {
  // Otherwise the comparisons with the naive tree would prove nothing.
  auto in_sequence = test::leaf_values<float>(0, shape);
  for (int leaf = 1; leaf < 8; ++leaf) {
    const auto values = test::leaf_values<float>(leaf, shape);
    for (std::size_t i = 0; i < values.size(); ++i) {
      in_sequence[i] += values[i];
    }
  }

  EXPECT_NE(in_sequence, test::naive_tree<float>(0, 8, shape));
}

TEST(TreeSum, NextGivesTheSameBufferUntilPushed) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, shape, 4);

  const auto* const first = tree.next().data;

  EXPECT_EQ(tree.next().data, first);
  tree.push(stream, 0);
  EXPECT_NE(tree.next().data, first);
}

TEST(TreeSum, RestartKeepsBuffersThatAreLargeEnough) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, {8, 8}, 8);
  test::push_leaves<float>(stream, tree, {0, 8});
  const int before = heap.most;

  tree.restart({8, 4});
  test::push_leaves<float>(stream, tree, {0, 8});

  EXPECT_EQ(heap.most, before);
  EXPECT_EQ(values_of<float>(tree.view(tree.take_nodes().at(0))), test::naive_tree<float>(0, 8, {8, 4}));
}

TEST(TreeSum, RestartGivesBackBuffersThatAreTooSmall) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, {2, 2}, 4);
  test::push_leaves<float>(stream, tree, {0, 3});

  tree.restart({4, 4});

  EXPECT_EQ(heap.alive, 0);
  test::push_leaves<float>(stream, tree, {0, 4});
  EXPECT_EQ(values_of<float>(tree.view(tree.take_nodes().at(0))), test::naive_tree<float>(0, 4, {4, 4}));
}

TEST(TreeSum, AcceptsMatricesWithoutElements) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, {0, 4}, 2);

  test::push_leaves<float>(stream, tree, {0, 2});

  EXPECT_THAT(tree.nodes(), ElementsAre(LeafRange{0, 2}));
}

TEST(TreeSum, RefusesLeavesOutOfOrderOrOutside) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, shape, 4);
  const auto push = [&](LeafRange node) {
    tree.next();
    tree.push(stream, node);
  };
  push({1, 1});

  EXPECT_THROW(push({1, 1}), Error);
  EXPECT_THROW(push({3, 1}), Error);
  EXPECT_THROW(push({2, 3}), Error);
  EXPECT_THROW(push({2, 4}), Error);
  EXPECT_THROW(push({-1, 1}), Error);
  EXPECT_THROW(push({2, 0}), Error);
  EXPECT_THAT(tree.nodes(), ElementsAre(LeafRange{1, 1}));
}

TEST(TreeSum, RefusesPushWithoutNext) {
  Heap heap;
  ImmediateStream stream;
  TreeSum tree(test::operations_on(heap), DType::f32, shape, 4);

  EXPECT_THROW(tree.push(stream, 0), Error);
}

TEST(TreeSum, RefusesTreesThatAreNotBinary) {
  Heap heap;
  for (const int leaves : {-8, 0, 3, 12}) {
    EXPECT_THROW(TreeSum(test::operations_on(heap), DType::f32, shape, leaves), Error) << leaves;
  }
  EXPECT_THROW(TreeSum(test::operations_on(heap), DType::f16, shape, 8), Error);
  EXPECT_THROW(TreeSum(test::operations_on(heap), DType::f32, {-1, 4}, 8), Error);
}

}  // namespace
}  // namespace gptqd::comm
