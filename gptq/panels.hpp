#pragma once
/// @file Column panels of H and of its factor L, spread over the ranks.
#include <array>
#include <cstdint>
#include <vector>

#include "comm/communicator.hpp"
#include "gptq/quant_spec.hpp"
#include "gptq/team.hpp"
#include "kernels/backend.hpp"

namespace gptqd::gptq {

/// Columns of one block of the solve: 128; with dynamic grids whole groups, as many as 128 columns hold, or one.
std::int64_t solve_block(const QuantSpec& spec);

/// The columns [first, first + cols) in factor order, with the rows [first, n): only the lower part exists.
struct PanelShape {
  std::int64_t first = 0;
  std::int64_t cols = 0;
  std::int64_t rows = 0;
};

/// The cut of n columns: panel k holds the columns that are quantized k·width-th and later, width of them. Cuts are
/// aligned at column n, where the solve starts; the last panel, with first == 0, may be narrower.
class PanelLayout {
 public:
  /// @pre columns, width > 0
  PanelLayout(std::int64_t columns, std::int64_t width);

  std::int64_t columns() const { return columns_; }
  int count() const { return static_cast<int>((columns_ + width_ - 1) / width_); }
  PanelShape at(int k) const;

 private:
  std::int64_t columns_;
  std::int64_t width_;
};

/// partition.panel_columns, rounded up to whole blocks of the solve.
PanelLayout panel_layout(std::int64_t columns, const QuantSpec& spec, const Partition& partition);

/// This rank's panels of a lower triangular or symmetric matrix. Panel k comes from rank k mod size and lives there; of
/// a matrix that is whole all panels live on every rank.
class Panels {
 public:
  /// Allocates this rank's panels, contents undefined.
  Panels(const Team& team, const PanelLayout& layout, DType dtype);
  /// Panels for results of `like`: the same layout, whole where `like` is.
  Panels(const Team& team, const Panels& like, DType dtype);

  /// Brings all panels to all ranks: the matrix is whole from now on, for work enqueued from now on. Collective.
  void make_whole(Team& team, std::string_view what);

  const PanelLayout& layout() const { return layout_; }
  DType dtype() const { return dtype_; }
  int count() const { return layout_.count(); }
  int owner(int k) const { return k % size_; }
  bool is_whole() const { return whole_; }
  bool owns(int k) const { return whole_ || owner(k) == rank_; }
  /// Panel k, dense. @pre owns(k)
  AnyView<2> view(int k) const;
  std::int64_t bytes(int k) const;
  /// The panel with the most bytes: the last one, or the one before it where the last is narrow.
  std::int64_t largest_bytes() const;

 private:
  Panels(const Team& team, const PanelLayout& layout, DType dtype, bool whole);

  PanelLayout layout_;
  DType dtype_;
  int rank_;
  int size_;
  bool whole_;
  std::vector<Buffer> own_;  // [count], empty for panels that live on other ranks
};

/// Brings panels to all ranks, one ahead of their use. Holds two panels beside the rank's own ones. An owner does not
/// wait for the ranks that it sends to. Panels of a whole matrix are there.
/// @code
/// exchange.start(0);
/// for (int k = 0; k < count; ++k) {
///   const auto panel = exchange.finish(k);
///   if (k + 1 < count) exchange.start(k + 1);
///   enqueue work with panel;
/// }
/// exchange.drain();
/// @endcode
class PanelExchange {
 public:
  /// @param panels  must outlive this
  PanelExchange(Team& team, const Panels& panels, std::string_view what);

  /// The owner begins to send panel k. Collective: all ranks in the same order, consecutive panels (up or down).
  void start(int k);
  /// Panel k for work enqueued from now on, until panel k ± 2 is started.
  ConstAnyView<2> finish(int k);
  /// Work enqueued from now on runs behind all transfers: own panels may change.
  void drain();

 private:
  Team& team_;
  const Panels& panels_;
  std::string what_;
  std::array<Buffer, 2> slots_;
  std::array<comm::Pending, 2> pending_;
};

/// The diagonal of a matrix in panels: [n], factor order, on every rank. Collective unless it is whole, blocks the
/// host.
std::vector<double> gather_diagonal(Team& team, const Panels& panels);

}  // namespace gptqd::gptq
