#include "gptq/row_solver.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "gptq/panels.hpp"

namespace gptqd::gptq {

namespace {

/// Rows of a scratch of moderate size; how rows are cut there does not show in any result.
std::int64_t rows_of_scratch(std::int64_t row_bytes) {
  constexpr std::int64_t scratch_bytes = std::int64_t{64} << 20;
  return std::max<std::int64_t>(1, scratch_bytes / row_bytes);
}

// What is measured of a rank's rows lies in one piece of memory: a number of all rows, then the next one. Places are
// bytes a row; norms and losses are sums, which begin at zero.
constexpr std::int64_t solve_loss = 0;  ///< of a GPTQ solve: the damped one
constexpr std::int64_t rtn_loss = 8;
constexpr std::int64_t weight_norm = 16;
constexpr std::int64_t damping_share = 24;
constexpr std::int64_t saturated = 32;
constexpr std::int64_t non_finite = 36;
constexpr std::int64_t min_scale = 40;
constexpr std::int64_t max_scale = 44;
static_assert(max_scale + sizeof(float) == RowSolver::measured_bytes);

/// [rows]
/// @param measured  of whose rows
template <class T>
TensorView<T, 1> number_of_rows(const Buffer& measured, RowRange rows, std::int64_t place) {
  return measured.view<T, 1>({rows.count}, rows.first * RowSolver::measured_bytes + rows.count * place);
}

}  // namespace

RowRange rows_of(int rank, int size, std::int64_t rows, std::int64_t row_tile) {
  const std::int64_t tiles = (rows + row_tile - 1) / row_tile;
  const auto begin = [&](int r) { return std::min(rows, r * tiles / size * row_tile); };
  return {.first = begin(rank), .count = begin(rank + 1) - begin(rank)};
}

template <class T>
TensorView<T, 1> RowSolver::own(std::int64_t place) const {
  return number_of_rows<T>(*places_.measured, rows_, place);
}

RowSolver::RowSolver(Team& team, Stream& stream, std::span<const LinearWeight> linears, RowRange rows,
                     const DeviceOrder& order, const QuantSpec& spec, std::int64_t row_tile, const Places& places)
    : team_(team),
      stream_(&stream),
      rows_(rows),
      order_(order),
      spec_(spec),
      n_(order.columns()),
      row_tile_(row_tile),
      places_(places) {
  if (empty()) {
    return;
  }
  const std::int64_t matrix_bytes = rows_.count * n_ * size_of(spec_.solver);
  weights_ = team_.backend.allocate(matrix_bytes);
  delta_ = team_.backend.allocate(matrix_bytes);
  codes_ = team_.backend.allocate(rows_.count * n_);
  auto* const measured = static_cast<std::byte*>(places_.measured->data());
  team_.backend.fill_zero(*stream_, measured + rows_.first * measured_bytes, rows_.count * measured_bytes);
  std::int64_t begin = 0;  // first stacked row of the linear
  for (const auto& linear : linears) {
    const std::int64_t first = std::max(rows_.first, begin);
    const std::int64_t end = std::min(rows_.first + rows_.count, begin + linear.weight.rows());
    if (first < end) {
      const Segment segment{.weight = linear.weight.slice_rows(first - begin, end - first),
                            .first = first - rows_.first};
      gather(segment.weight, matrix(weights_).slice_rows(segment.first, end - first));
      segments_.push_back(segment);
    }
    begin += linear.weight.rows();
  }
}

void RowSolver::gather(ConstAnyView<2> weight, AnyView<2> rows) {
  Backend& backend = team_.backend;
  if (weight.dtype == rows.dtype || weight.dtype == DType::f32) {
    backend.gather_columns(*stream_, {.x = weight, .index = order_.index(), .y = rows});
    return;
  }
  const std::int64_t step = std::min(weight.rows(), rows_of_scratch(n_ * size_of(weight.dtype)));
  const Buffer scratch = backend.allocate(step * n_ * size_of(weight.dtype));
  for (std::int64_t first = 0; first < weight.rows(); first += step) {
    const std::int64_t count = std::min(step, weight.rows() - first);
    const auto gathered = scratch.any_view<2>(weight.dtype, {count, n_});
    backend.gather_columns(*stream_, {.x = weight.slice_rows(first, count), .index = order_.index(), .y = gathered});
    backend.convert(*stream_, {.x = gathered, .y = rows.slice_rows(first, count)});
  }
}

void RowSolver::find_grids(std::span<const std::int32_t> zeroed_columns) {
  Backend& backend = team_.backend;
  for (const auto& segment : segments_) {
    // In original order, so that a grid does not depend on the order in which columns are quantized.
    const bool in_place = segment.weight.dtype == spec_.solver && zeroed_columns.empty();
    const std::int64_t rows = segment.weight.rows();
    const std::int64_t step = in_place ? rows : std::min(rows, rows_of_scratch(n_ * size_of(spec_.solver)));
    const Buffer scratch = in_place ? Buffer() : backend.allocate(step * n_ * size_of(spec_.solver));
    for (std::int64_t first = 0; first < rows; first += step) {
      const std::int64_t count = std::min(step, rows - first);
      ConstAnyView<2> weights = segment.weight.slice_rows(first, count);
      if (!in_place) {
        const auto converted = scratch.any_view<2>(spec_.solver, {count, n_});
        backend.convert(*stream_, {.x = weights, .y = converted});
        zero_columns(converted, zeroed_columns);
        weights = converted;
      }
      backend.find_grids(*stream_, {.spec = spec_.grid(),
                                    .weights = weights,
                                    .group = order_.original_group(),
                                    .member = order_.original_member(),
                                    .scales = places_.scales.slice_rows(segment.first + first, count),
                                    .zeros = places_.zeros.slice_rows(segment.first + first, count),
                                    .blocks = places_.blocks});
    }
  }
}

void RowSolver::zero_columns(AnyView<2> matrix, std::span<const std::int32_t> columns) {
  if (columns.empty()) {
    return;
  }
  // Through the host: only reference mode comes here, and only for layers with dead inputs.
  std::vector<std::byte> host(static_cast<std::size_t>(matrix.bytes()));
  team_.backend.copy_to_host(*stream_, host.data(), matrix.data, matrix.bytes());
  stream_->synchronize();
  const std::int64_t element = size_of(matrix.dtype);
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    for (const std::int32_t column : columns) {
      std::fill_n(host.begin() + (r * matrix.cols() + column) * element, element, std::byte{0});
    }
  }
  team_.backend.copy_to_device(*stream_, matrix.data, host.data(), matrix.bytes());
  stream_->synchronize();
}

void RowSolver::round_to_nearest() {
  if (empty()) {
    return;
  }
  find_grids({});
  team_.backend.round_to_grids(*stream_, {.bits = spec_.bits,
                                          .weights = matrix(weights_),
                                          .group = order_.group(),
                                          .scales = places_.scales,
                                          .zeros = places_.zeros,
                                          .codes = codes(),
                                          .delta = matrix(delta_)});
}

void RowSolver::join() {
  if (stream_ != &team_.stream) {
    team_.stream.wait(stream_->record());
    stream_ = &team_.stream;
  }
}

void RowSolver::begin_solve(std::span<const std::int32_t> dead) {
  if (empty()) {
    return;
  }
  baseline_ = std::exchange(delta_, team_.backend.allocate(rows_.count * n_ * size_of(spec_.solver)));
  if (!spec_.reference || dead.empty()) {
    return;
  }
  zero_columns(matrix(weights_), dead);
  if (spec_.group_size > 0 && !spec_.dynamic_grids()) {
    std::vector<std::int32_t> original;
    for (const std::int32_t column : dead) {
      original.push_back(order_.host().index[static_cast<std::size_t>(column)]);
    }
    find_grids(original);
  }
}

void RowSolver::solve(const Factorization& factorization) {
  solved_ = true;
  walk(factorization, true);
}

void RowSolver::solve_obq(ConstTensorView<double, 2> inverse) {
  if (empty()) {
    return;
  }
  team_.backend.obq(*stream_, {.bits = spec_.bits,
                               .inverse = inverse,
                               .weights = matrix(weights_),
                               .group = order_.group(),
                               .scales = places_.scales,
                               .zeros = places_.zeros,
                               .codes = codes(),
                               .delta = matrix(delta_)});
}

void RowSolver::measure(const Factorization& factorization) { walk(factorization, false); }

void RowSolver::walk(const Factorization& factorization, bool solving) {
  Backend& backend = team_.backend;
  Stream& stream = *stream_;
  const Panels& factor = *factorization.factor;
  const Buffer device_extra = upload(backend, stream, std::span<const double>(factorization.diagonal.extra));
  const auto extra = device_extra.view<const double, 1>({n_});
  PanelExchange exchange(team_, factor, "panel of the Hessian's factor");
  exchange.start(0);
  for (int k = 0; k < factor.count(); ++k) {
    const auto panel = exchange.finish(k);
    if (k + 1 < factor.count()) {
      exchange.start(k + 1);
    }
    if (empty()) {
      continue;
    }
    const std::int64_t first = factor.layout().at(k).first;
    std::vector<NormRows> measured{{.delta = matrix(weights_), .norms = own<double>(weight_norm)}};
    if (baseline_) {
      measured.push_back({.delta = matrix(baseline_), .norms = own<double>(rtn_loss)});
    }
    if (solving) {
      backend.solve_panel(stream, {.grid = spec_.grid(),
                                   .dynamic_grids = spec_.dynamic_grids(),
                                   .block = solve_block(spec_),
                                   .first = first,
                                   .factor = panel,
                                   .weights = matrix(weights_),
                                   .delta = matrix(delta_),
                                   .codes = codes(),
                                   .group = order_.group(),
                                   .member = order_.member(),
                                   .scales = places_.scales,
                                   .zeros = places_.zeros,
                                   .blocks = places_.blocks,
                                   .row_loss = own<double>(solve_loss),
                                   .row_tile = row_tile_});
    } else {
      measured.push_back({.delta = matrix(delta_), .norms = own<double>(solve_loss)});
    }
    backend.weighted_norms(
        stream, {.factor = panel, .first = first, .rows = std::move(measured), .extra = extra, .row_tile = row_tile_});
  }
  exchange.drain();
}

void RowSolver::pack() {
  if (empty()) {
    return;
  }
  team_.backend.pack_rows(
      *stream_, {.bits = spec_.bits, .codes = codes(), .position = order_.position(), .packed = places_.packed});
}

void RowSolver::measure_result(const Factorization* factorization) {
  if (empty()) {
    return;
  }
  Backend& backend = team_.backend;
  // The solve's own loss is the damped one.
  RowStatisticsArgs args{.bits = spec_.bits,
                         .delta = matrix(delta_),
                         .codes = codes(),
                         .group = order_.group(),
                         .scales = places_.scales,
                         .damping_share = {},
                         .saturated = {},
                         .non_finite = {},
                         .min_scale = {},
                         .max_scale = {}};
  if (solved_ && factorization != nullptr) {
    damping_ = upload(backend, *stream_, std::span<const double>(factorization->diagonal.extra));
    args.extra = damping_.view<const double, 1>({n_});
  }
  args.damping_share = own<double>(damping_share);
  args.saturated = own<std::int32_t>(saturated);
  args.non_finite = own<std::int32_t>(non_finite);
  args.min_scale = own<float>(min_scale);
  args.max_scale = own<float>(max_scale);
  backend.row_statistics(*stream_, args);
}

std::vector<RowStatistics> statistics_of(const Buffer& measured, std::span<const RowRange> shares, bool has_baseline) {
  std::vector<RowStatistics> rows;
  for (const auto& share : shares) {
    const auto losses = number_of_rows<double>(measured, share, solve_loss);
    const auto rtn_losses = number_of_rows<double>(measured, share, rtn_loss);
    const auto norms = number_of_rows<double>(measured, share, weight_norm);
    const auto shares_of_damping = number_of_rows<double>(measured, share, damping_share);
    const auto saturated_codes = number_of_rows<std::int32_t>(measured, share, saturated);
    const auto infinite = number_of_rows<std::int32_t>(measured, share, non_finite);
    const auto least = number_of_rows<float>(measured, share, min_scale);
    const auto largest = number_of_rows<float>(measured, share, max_scale);
    for (std::int64_t r = 0; r < share.count; ++r) {
      const double loss = losses(r) - shares_of_damping(r);
      rows.push_back({.loss = loss,
                      .rtn_loss = has_baseline ? rtn_losses(r) : loss,
                      .weight_norm = norms(r),
                      .min_scale = least(r),
                      .max_scale = largest(r),
                      .saturated_codes = saturated_codes(r),
                      .non_finite = infinite(r)});
    }
  }
  return rows;
}

}  // namespace gptqd::gptq
