#pragma once
/// @file One fixed binary tree of additions, whatever the number of ranks: sums whose bits do not depend on it.
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/base/buffer.hpp"
#include "kernels/base/stream.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd::comm {

/// Leaves [first, first + count).
struct LeafRange {
  int first = 0;
  int count = 0;
  int end() const { return first + count; }
  bool operator==(const LeafRange&) const = default;
};

/// The leaves of one rank: [rank * leaves / ranks, (rank + 1) * leaves / ranks). Empty for some if ranks > leaves.
/// @throws Error (internal) unless 0 <= rank < ranks and leaves >= 1
LeafRange leaves_of(int rank, int ranks, int leaves);

/// The largest nodes of the tree that lie inside a range, in leaf order: what is left of it when siblings have been
/// added. A node covers a range whose count is a power of two and whose first leaf is a multiple of the count.
std::vector<LeafRange> nodes_of(LeafRange range);

/// Buffers that a TreeSum uses at once when the leaves of a range are pushed one by one, at most.
int most_buffers(LeafRange range);

/// What the tree needs of the numeric backend.
struct TreeOperations {
  /// A buffer of at least this many bytes.
  std::function<Buffer(std::int64_t bytes)> allocate;
  /// dst += src, element by element, enqueued on the stream. Both [rows, cols], dense, the same f32 or f64.
  std::function<void(Stream& stream, AnyView<2> dst, ConstAnyView<2> src)> add;
  /// dst <- src, likewise; dst's rows may be strided.
  std::function<void(Stream& stream, AnyView<2> dst, ConstAnyView<2> src)> copy;
};

/// The nodes of the tree that one rank has so far.
///
/// node(first, 2k) = node(first, k) + node(first + k, k), left plus right, in this order. Leaves are pushed in order;
/// siblings are added as soon as both are there, so the buffers alive are at most 2 log2(leaves) + 2.
/// All work has to go to one stream: a buffer is reused as soon as the work that read it is enqueued.
/// @code
/// for (int leaf = range.first; leaf < range.end(); ++leaf) {
///   accumulate(stream, leaf, tree.next());  // writes all of it
///   tree.push(stream, leaf);
/// }
/// reduction.add(tree, owner, result, what);  // TreeReduction
/// @endcode
class TreeSum {
 public:
  struct Node {
    LeafRange leaves;
    Buffer buffer;
  };

  /// @param shape   [rows, cols] of the matrices
  /// @param leaves  of the whole tree, a power of two
  /// @throws Error (internal) for another number of leaves or a dtype other than f32, f64
  TreeSum(TreeOperations operations, DType dtype, Shape<2> shape, int leaves);

  /// A buffer [rows, cols] for the next leaf's partial sum, not zeroed. The same one until it is pushed.
  AnyView<2> next();
  /// Adds the matrix that next() gave to the tree as `leaf`.
  /// @pre next() was called; leaf follows the last one pushed
  void push(Stream& stream, int leaf) { push(stream, LeafRange{.first = leaf, .count = 1}); }
  /// The same for a whole node that came from elsewhere.
  /// @pre the node is aligned (see nodes_of)
  void push(Stream& stream, LeafRange node);
  /// Adds a node that already has its buffer.
  void push(Stream& stream, Node node);

  /// Nodes that wait for their siblings, in leaf order.
  std::vector<LeafRange> nodes() const;
  /// Moves the nodes out, leaving an empty tree. Give their buffers back with recycle().
  std::vector<Node> take_nodes();
  void recycle(Buffer buffer);
  /// A buffer for one matrix, from those that are not in use where there is one.
  Buffer spare_buffer();
  void copy(Stream& stream, AnyView<2> to, const Node& from) { operations_.copy(stream, to, view(from)); }
  AnyView<2> view(const Node& node) const { return node.buffer.any_view<2>(dtype_, shape_); }

  /// Forgets all nodes and takes another shape. Buffers are made for the largest shape so far; smaller ones go.
  void restart(Shape<2> shape);

  DType dtype() const { return dtype_; }
  Shape<2> shape() const { return shape_; }
  int leaves() const { return leaves_; }

 private:
  std::int64_t bytes() const { return shape_[0] * shape_[1] * size_of(dtype_); }

  TreeOperations operations_;
  DType dtype_;
  Shape<2> shape_;
  std::int64_t largest_bytes_;
  int leaves_;
  std::vector<Node> stack_;
  std::vector<Buffer> free_;
  std::optional<Buffer> next_;
};

}  // namespace gptqd::comm
