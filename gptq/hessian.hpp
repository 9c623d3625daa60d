#pragma once
/// @file The Hessian H = XᵀX of linears that share their input X (GPTQ, arXiv:2210.17323, section 3).
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/tree_sum.hpp"
#include "gptq/column_order.hpp"
#include "gptq/panels.hpp"
#include "gptq/team.hpp"

namespace gptqd::gptq {

/// The activations of one leaf of the summation tree: chunks of [tokens, cols], in sample order, natural column
/// order. While H is accumulated their columns are put into factor order, in place, and afterwards back.
struct LeafInput {
  int leaf = 0;
  std::vector<AnyView<2>> chunks;
};

/// Where H comes from: activations (this rank's leaves, contiguous and ascending), or a given matrix (tools, tests).
struct HessianInput {
  std::vector<LeafInput> leaves;
  std::int64_t tokens = 0;  ///< of all ranks together
  std::optional<ConstAnyView<2>>
      matrix;  ///< [cols, cols] f32 or f64 on the device, the same on every rank; instead of leaves
  /// Called when H is not finite: names the first offending sample of this rank, or nothing.
  std::function<std::optional<std::string>()> find_non_finite;
};

/// H by diagonal and by panels, never whole, unless it was given whole. All ranks hold the same bits, whatever their
/// number: leaves are summed in one fixed tree.
class HessianSource {
 public:
  /// Checks the input; copies a given matrix to the host.
  /// @param input  must outlive this
  /// @param layer  the layers' names, for messages
  /// @throws Error (internal) for leaves that are not this rank's (comm::leaves_of) or shapes that do not fit
  HessianSource(Team& team, const HessianInput& input, std::int64_t columns, int leaves, std::string layer);

  /// diag(H) in fp64, original order. Collective, blocks the host. @throws as require_finite()
  std::vector<double> diagonal();

  /// This rank's panels of H, columns in the order's factor order: fp32 from activations, `solver` from a given matrix.
  ///
  /// Panels outside, leaves inside: beside the panels this needs log2(leaves) + 2 buffers of one panel and one chunk of
  /// activations, never a second H; with several ranks also the nodes of up to four panels on their way to the owners,
  /// while XᵀX of the next ones is computed. The strictly upper part of a panel's first rows is unspecified.
  /// Collective.
  Panels panels(const PanelLayout& layout, const DeviceOrder& order, DType solver);

  /// Collective: every rank passes the same diagonal, and every rank throws the same error.
  /// @throws Error (input) naming the layers, and the sample if find_non_finite knows it, unless all values are finite
  void require_finite(std::span<const double> diagonal);

 private:
  void accumulate(Panels& panels, const DeviceOrder& order);
  /// Pushes XᵀX of this rank's leaves, the columns of one panel.
  void add_leaves_of_panel(comm::TreeSum& tree, PanelShape shape);
  void reorder_activations(DeviceOrder::Map index);
  void extract(Panels& panels, const ColumnOrder& order);
  [[noreturn]] void throw_not_finite(const std::string& what);

  Team& team_;
  const HessianInput& input_;
  std::int64_t columns_;
  int leaves_;
  std::string layer_;
  std::vector<double> matrix_;  // [columns, columns], only of a given matrix
};

}  // namespace gptqd::gptq
