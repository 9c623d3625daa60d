#pragma once
/// @file Sums over the ranks of trees whose nodes are spread over them.
#include <string_view>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/tree_sum.hpp"

namespace gptqd::comm {

/// Brings the roots of several trees of all ranks' leaves to their owners: the same bits for any number of ranks.
///
/// Rank r has pushed leaves_of(r, size, leaves) of each tree. A tree's owner takes the ranks' nodes in leaf order,
/// adding siblings as TreeSum does. All nodes travel at once, straight to their owners, beside whatever the stream does
/// between start() and finish(). Collective: all ranks add the same trees in the same order.
/// @code
/// reduction.add(tree, owner, result, "panel 3 of H");  // for each tree
/// reduction.start(stream, "panels 3 to 5 of H");
/// enqueue work that needs none of the results;
/// reduction.finish(stream, tree);
/// @endcode
class TreeReduction {
 public:
  /// @param communicator  outlives this
  explicit TreeReduction(Communicator& communicator) : communicator_(&communicator) {}

  /// Moves this rank's nodes out of `local`, which may be filled again.
  /// @param result  [rows, cols] of local's dtype, rows may be strided; written at the owner by finish(), ignored
  ///                elsewhere
  /// @throws Error (internal) if `local` does not hold this rank's leaves, or `result` has another shape or dtype
  void add(TreeSum& local, int owner, AnyView<2> result, std::string_view what);
  void start(Stream& stream, std::string_view what);
  /// Adds what has arrived. Leaves `local`, which must be empty, with the buffers to use again.
  void finish(Stream& stream, TreeSum& local);

 private:
  struct Tree {
    int owner = 0;
    Shape<2> shape{};
    DType dtype = DType::f32;
    AnyView<2> result;
    std::vector<TreeSum::Node> own;
    std::vector<std::pair<int, TreeSum::Node>> received;  // of the other ranks, in rank order
  };
  bool owns(const Tree& tree) const { return tree.owner == communicator_->rank(); }

  Communicator* communicator_;
  std::vector<Tree> trees_;
  Pending pending_;
};

}  // namespace gptqd::comm
