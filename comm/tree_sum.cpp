#include "comm/tree_sum.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace gptqd::comm {

LeafRange leaves_of(int rank, int ranks, int leaves) {
  require(ranks >= 1 && rank >= 0 && rank < ranks && leaves >= 1,
          fmt::format("leaves of rank {} of {}, {} leaves: out of range", rank, ranks, leaves));
  const auto bound = [&](std::int64_t r) { return static_cast<int>(r * leaves / ranks); };
  const int first = bound(rank);
  return {.first = first, .count = bound(rank + 1) - first};
}

std::vector<LeafRange> nodes_of(LeafRange range) {
  require(range.first >= 0 && range.count >= 0, "nodes of a range of leaves: negative bound");
  std::vector<LeafRange> nodes;
  for (int first = range.first; first < range.end();) {
    const auto left = static_cast<unsigned>(range.end() - first);
    // The lowest set bit of `first` is the largest count that divides it.
    const unsigned aligned = first == 0 ? left : static_cast<unsigned>(first & -first);
    const int count = static_cast<int>(std::bit_floor(std::min(left, aligned)));
    nodes.push_back({.first = first, .count = count});
    first += count;
  }
  return nodes;
}

int most_buffers(LeafRange range) {
  std::size_t most = 0;
  for (int count = 1; count <= range.count; ++count) {
    // The leaf about to be pushed, beside the nodes before it.
    most = std::max(most, nodes_of({.first = range.first, .count = count - 1}).size() + 1);
  }
  return static_cast<int>(most);
}

namespace {

bool are_siblings(LeafRange left, LeafRange right) {
  return left.count == right.count && left.end() == right.first && left.first % (2 * left.count) == 0;
}

}  // namespace

TreeSum::TreeSum(TreeOperations operations, DType dtype, Shape<2> shape, int leaves)
    : operations_(std::move(operations)), dtype_(dtype), shape_(shape), largest_bytes_(bytes()), leaves_(leaves) {
  require(leaves >= 1 && std::has_single_bit(static_cast<unsigned>(leaves)),
          fmt::format("tree of partial sums: the number of leaves has to be a power of two, got {}", leaves));
  require(dtype == DType::f32 || dtype == DType::f64,
          fmt::format("tree of partial sums: element type has to be F32 or F64, got {}", name_of(dtype)));
  require(shape[0] >= 0 && shape[1] >= 0, fmt::format("tree of partial sums: bad shape {}", to_string(shape)));
}

AnyView<2> TreeSum::next() {
  if (!next_) {
    next_ = spare_buffer();
  }
  return next_->any_view<2>(dtype_, shape_);
}

Buffer TreeSum::spare_buffer() {
  if (free_.empty()) {
    return operations_.allocate(largest_bytes_);
  }
  Buffer buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

void TreeSum::push(Stream& stream, LeafRange node) {
  require(next_.has_value(), "tree of partial sums: push() without next()");
  // Out of next_ before anything can throw: a buffer is never in two places.
  Node pushed{.leaves = node, .buffer = std::move(*next_)};
  next_.reset();
  push(stream, std::move(pushed));
}

void TreeSum::push(Stream& stream, Node node) {
  const auto range = node.leaves;
  require(nodes_of(range).size() == 1 && range.end() <= leaves_,
          fmt::format("tree of partial sums: leaves [{}, {}) are no node of a tree of {}", range.first, range.end(),
                      leaves_));
  require(stack_.empty() || stack_.back().leaves.end() == range.first,
          fmt::format("tree of partial sums: leaf {} pushed out of order, expected {}", range.first,
                      stack_.empty() ? range.first : stack_.back().leaves.end()));
  stack_.push_back(std::move(node));
  while (stack_.size() >= 2 && are_siblings(stack_[stack_.size() - 2].leaves, stack_.back().leaves)) {
    Node right = std::move(stack_.back());
    stack_.pop_back();
    Node& left = stack_.back();
    operations_.add(stream, view(left), view(right));
    left.leaves.count *= 2;
    recycle(std::move(right.buffer));
  }
}

std::vector<LeafRange> TreeSum::nodes() const {
  std::vector<LeafRange> ranges;
  for (const auto& node : stack_) {
    ranges.push_back(node.leaves);
  }
  return ranges;
}

std::vector<TreeSum::Node> TreeSum::take_nodes() { return std::exchange(stack_, {}); }

void TreeSum::recycle(Buffer buffer) { free_.push_back(std::move(buffer)); }

void TreeSum::restart(Shape<2> shape) {
  require(shape[0] >= 0 && shape[1] >= 0, fmt::format("tree of partial sums: bad shape {}", to_string(shape)));
  for (auto& node : take_nodes()) {
    recycle(std::move(node.buffer));
  }
  if (next_) {
    recycle(std::move(*next_));
    next_.reset();
  }
  shape_ = shape;
  largest_bytes_ = std::max(largest_bytes_, bytes());
  std::erase_if(free_, [&](const Buffer& buffer) { return buffer.bytes() < largest_bytes_; });
}

}  // namespace gptqd::comm
