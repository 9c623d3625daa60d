#include "comm/tree_reduction.hpp"

#include <utility>

namespace gptqd::comm {

void TreeReduction::add(TreeSum& local, int owner, AnyView<2> result, std::string_view what) {
  const int rank = communicator_->rank();
  const int size = communicator_->size();
  require(owner >= 0 && owner < size, fmt::format("sum of {}: owner {} of {} ranks", what, owner, size));
  const auto nodes_of_rank = [&](int r) { return nodes_of(leaves_of(r, size, local.leaves())); };
  require(local.nodes() == nodes_of_rank(rank),
          fmt::format("sum of {}: rank {} of {} has to push exactly its own of the {} leaves", what, rank, size,
                      local.leaves()));
  require(rank != owner || (result.dtype == local.dtype() && result.shape == local.shape()),
          fmt::format("sum of {}: the result is {} {}, the partial sums are {} {}", what, name_of(result.dtype),
                      to_string(result.shape), name_of(local.dtype()), to_string(local.shape())));
  Tree tree{.owner = owner,
            .shape = local.shape(),
            .dtype = local.dtype(),
            .result = result,
            .own = local.take_nodes(),
            .received = {}};
  for (int r = 0; owns(tree) && r < size; ++r) {
    for (const auto node : r == rank ? std::vector<LeafRange>() : nodes_of_rank(r)) {
      tree.received.emplace_back(r, TreeSum::Node{.leaves = node, .buffer = local.spare_buffer()});
    }
  }
  trees_.push_back(std::move(tree));
}

void TreeReduction::start(Stream& stream, std::string_view what) {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (const auto& tree : trees_) {
    const std::int64_t bytes = tree.shape[0] * tree.shape[1] * size_of(tree.dtype);
    for (const auto& node : tree.own) {
      if (!owns(tree)) {
        sends.push_back({.peer = tree.owner, .data = node.buffer.data(), .bytes = bytes});
      }
    }
    for (const auto& [peer, node] : tree.received) {
      receives.push_back({.peer = peer, .data = node.buffer.data(), .bytes = bytes});
    }
  }
  if (!sends.empty() || !receives.empty()) {
    pending_ = communicator_->exchange(stream, sends, receives, what);
  }
}

void TreeReduction::finish(Stream& stream, TreeSum& local) {
  pending_.wait();
  for (auto& tree : trees_) {
    if (!owns(tree)) {
      for (auto& node : tree.own) {
        local.recycle(std::move(node.buffer));
      }
      continue;
    }
    local.restart(tree.shape);
    auto received = tree.received.begin();
    const auto push_received = [&](bool before_own) {
      for (; received != tree.received.end() && (received->first < tree.owner) == before_own; ++received) {
        local.push(stream, std::move(received->second));
      }
    };
    push_received(true);
    for (auto& node : tree.own) {
      local.push(stream, std::move(node));
    }
    push_received(false);
    auto root = local.take_nodes();
    require(root.size() == 1, "sum over the tree: more than one node is left");
    local.copy(stream, tree.result, root.front());
    local.recycle(std::move(root.front().buffer));
  }
  trees_.clear();
}

}  // namespace gptqd::comm
