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
#include "kernels/transfer_ring.hpp"

namespace gptqd::gptq {

/// Activations [tokens, cols] that one gram_panel takes, natural column order. How X is cut into chunks decides the
/// last bits; where their parts lie does not.
struct ActivationChunk {
  /// [rows, cols], dense, behind one another. On the device: one part.
  std::vector<AnyView<2>> parts;

  ActivationChunk() = default;
  ActivationChunk(AnyView<2> whole) : parts{whole} {}  // NOLINT(google-explicit-constructor)
  std::int64_t rows() const;
  std::int64_t bytes() const;
};

/// The activations of one leaf of the summation tree, in sample order. On the device their columns may be put into factor
/// order while H is accumulated, in place, and afterwards back.
struct LeafInput {
  int leaf = 0;
  std::vector<ActivationChunk> chunks;
};

/// Where H comes from: activations (this rank's leaves, contiguous and ascending), or a given matrix (tools, tests).
struct HessianInput {
  std::vector<LeafInput> leaves;
  std::int64_t tokens = 0;  ///< of all ranks together
  std::optional<ConstAnyView<2>>
      matrix;  ///< [cols, cols] f32 or f64 on the device, the same on every rank; instead of leaves
  /// Called when H is not finite: names the first offending sample of this rank, or nothing.
  std::function<std::optional<std::string>()> find_non_finite;
  /// Set where the leaves lie in page-locked host memory: the stream that brings them. On all ranks or none.
  Stream* upload = nullptr;
  /// Device memory that copies of chunks and passes over leaves may take beyond what the solve takes later.
  std::int64_t spare_bytes = 0;
  /// Σ x² of each of this rank's leaves, [leaves, cols], on the device, by whoever made them; else computed from them.
  std::optional<ConstTensorView<double, 2>> square_sums = std::nullopt;
};

/// How H is made of activations on the device.
struct ResidentWay {
  /// A chunk after the other is copied into factor order, for all panels at once, which takes half as long as putting X
  /// into that order and back. But the sums of all panels take their memory, and several ranks could not exchange them
  /// beside the work: only one rank's way, where `room` allows it.
  bool copies = false;
  std::int64_t bytes = 0;  ///< of the device, beside H
};
ResidentWay resident_way(const PanelLayout& layout, int ranks, int rank, int leaves, std::int64_t chunk_bytes,
                         std::int64_t room);

/// How XᵀX of parked activations is cut: each pass over X makes panels [last, first], descending, with one tree of sums
/// each. A pass takes what fits into `room` bytes, and at least as many panels as ranks, up to four.
struct PanelPass {
  int first = 0;
  int last = 0;
  std::int64_t bytes = 0;  ///< of the trees, on a rank
};
std::vector<PanelPass> panel_passes(const PanelLayout& layout, int ranks, int leaves, std::int64_t room);

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
  /// Of activations on the device: panels outside, leaves inside. Beside the panels this needs log2(leaves) + 1 buffers
  /// of one panel, never a second H; with several ranks also the nodes of up to four panels on their way to the owners,
  /// while XᵀX of the next ones is computed. Or leaves outside, where resident_way() says so. Of parked ones: passes over
  /// X (panel_passes), two chunks on the device. Each panel's additions have the same order: the same bits. The strictly
  /// upper part of a panel's first rows is unspecified. Collective.
  /// @param room  bytes of this rank's device that copies, and passes over parked activations, may take; of the latter
  /// the least of all ranks counts
  Panels panels(const PanelLayout& layout, const DeviceOrder& order, DType solver, std::int64_t room = 0);

  /// Collective: every rank passes the same diagonal, and every rank throws the same error.
  /// @throws Error (input) naming the layers, and the sample if find_non_finite knows it, unless all values are finite
  void require_finite(std::span<const double> diagonal);

 private:
  /// A panel and the tree that adds it up.
  struct PanelSum {
    PanelShape shape;
    comm::TreeSum tree;
  };
  using UseChunk = std::function<void(AnyView<2> x)>;

  void accumulate(Panels& panels, const DeviceOrder& order);
  void accumulate_copies(Panels& panels, const DeviceOrder& order);
  void accumulate_parked(Panels& panels, const DeviceOrder& order, std::int64_t room);
  /// The panels of one pass, from chunks in factor order as `visit` of add_leaves() gives them.
  void make_panels(Panels& panels, const PanelPass& pass,
                   const std::function<void(const LeafInput& leaf, const UseChunk& use)>& visit);
  comm::TreeSum make_tree(DType dtype, PanelShape shape) const;
  /// Pushes XᵀX of this rank's leaves to the trees, whose panels' columns chunks hold in factor order.
  /// @param visit  calls its second argument with each chunk of a leaf, on the device
  void add_leaves(std::span<PanelSum> sums,
                  const std::function<void(const LeafInput& leaf, const UseChunk& use)>& visit);
  /// Chunks with rows where they lie, or, given a ring, through it.
  void visit_chunks(const LeafInput& leaf, UploadRing* ring, const UseChunk& use);
  std::int64_t largest_chunk_bytes() const;
  std::vector<double> own_square_sums();
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
