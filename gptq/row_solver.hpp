#pragma once
/// @file The rows of W: grids, rounding, the solve, and the losses of one rank's share of them.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gptq/column_order.hpp"
#include "gptq/factorization.hpp"
#include "gptq/quant_spec.hpp"
#include "gptq/team.hpp"

namespace gptqd::gptq {

struct LinearWeight {
  std::string name;
  ConstAnyView<2> weight;  ///< [rows, cols], compute dtype, on every rank the same
};

/// Rows [first, first + count) of the linears' rows stacked on one another.
struct RowRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// The tiles [rank·tiles/size, (rank + 1)·tiles/size): whole tiles, but for the last one of all. Maybe empty.
RowRange rows_of(int rank, int size, std::int64_t rows, std::int64_t row_tile);

/// What one row contributes to its layer's record. Losses are of the undamped H, not divided by anything.
struct RowStatistics {
  double loss = 0;         ///< δ H δᵀ of the result
  double rtn_loss = 0;     ///< of round-to-nearest
  double weight_norm = 0;  ///< w H wᵀ
  double min_scale = 0;
  double max_scale = 0;
  std::int64_t saturated_codes = 0;
  std::int64_t non_finite = 0;  ///< values of δ that are infinite or not numbers
};

/// One rank's rows of the stacked linears, from weights to codes. All ranks call its methods in the same order, also
/// those without rows. Results lie in factor order until pack().
class RowSolver {
 public:
  struct Places {
    TensorView<float, 2> scales;          ///< [count, groups] of this rank's rows
    TensorView<std::uint8_t, 2> zeros;    ///< [count, groups]
    TensorView<std::uint32_t, 2> packed;  ///< [count, cols·bits/32]
    ConstTensorView<float, 3> blocks;     ///< H's blocks of groups for Clip::hessian, else empty
    const Buffer* measured = nullptr;     ///< what is measured of all ranks' rows, measured_bytes a row
  };
  static constexpr std::int64_t measured_bytes = 48;

  /// Enqueues the gathering of the rows into factor order. The arguments must outlive this.
  /// @param stream  for all work until join()
  RowSolver(Team& team, Stream& stream, std::span<const LinearWeight> linears, RowRange rows, const DeviceOrder& order,
            const QuantSpec& spec, std::int64_t row_tile, const Places& places);

  /// Round to nearest on grids found from W: the result of Method::rtn, or else the baseline of the record.
  void round_to_nearest();
  /// Goes on in the team's stream, behind what is enqueued.
  void join();
  /// Keeps the errors of round_to_nearest() as the baseline, prepares W for a solve: with spec.reference the weights of
  /// dead columns become zero, and the grids of groups are found again.
  /// @param dead  columns in factor order
  void begin_solve(std::span<const std::int32_t> dead);
  /// GPTQ: walks L's panels in the order in which columns are quantized. Collective.
  void solve(const Factorization& factorization);
  /// OBQ on the grids that are there. @param inverse  [cols, cols] H⁻¹, factor order
  void solve_obq(ConstTensorView<double, 2> inverse);
  /// Walks L's panels for the losses alone: after round_to_nearest() or solve_obq(). Collective.
  void measure(const Factorization& factorization);
  /// Enqueues codes -> places.packed, original order.
  void pack();
  /// Enqueues what is left to be measured of rows -> places.measured. @param factorization  null: no losses
  void measure_result(const Factorization* factorization);

 private:
  /// Rows of one linear that follow one another in this rank's share.
  struct Segment {
    ConstAnyView<2> weight;
    std::int64_t first = 0;  // row of this rank's share
  };

  void gather(ConstAnyView<2> weight, AnyView<2> rows);
  void find_grids(std::span<const std::int32_t> zeroed_columns);
  void zero_columns(AnyView<2> matrix, std::span<const std::int32_t> columns);
  void walk(const Factorization& factorization, bool solving);
  AnyView<2> matrix(const Buffer& buffer) const { return buffer.any_view<2>(spec_.solver, {rows_.count, n_}); }
  TensorView<std::uint8_t, 2> codes() const { return codes_.view<std::uint8_t, 2>({rows_.count, n_}); }
  /// [count], of places.measured, at a place that row_solver.cpp names
  template <class T>
  TensorView<T, 1> own(std::int64_t place) const;
  bool empty() const { return rows_.count == 0; }

  Team& team_;
  Stream* stream_;
  RowRange rows_;
  const DeviceOrder& order_;
  const QuantSpec& spec_;
  std::int64_t n_;
  std::int64_t row_tile_;
  Places places_;
  std::vector<Segment> segments_;
  bool solved_ = false;  // solve_loss holds the damped loss of a GPTQ solve
  Buffer weights_;       // [count, n], factor order
  Buffer delta_;         // [count, n], Q − W
  Buffer baseline_;      // [count, n], of round-to-nearest; empty while that is the result
  Buffer codes_;         // u8 [count, n]
  Buffer damping_;       // f64 [n], of the factorization
};

/// Of all ranks' rows, in order.
/// @param measured  in the host's memory, as places.measured  @param has_baseline  a solve followed round_to_nearest()
std::vector<RowStatistics> statistics_of(const Buffer& measured, std::span<const RowRange> shares, bool has_baseline);

}  // namespace gptqd::gptq
