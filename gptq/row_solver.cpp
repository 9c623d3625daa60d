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

}  // namespace

RowRange rows_of(int rank, int size, std::int64_t rows, std::int64_t row_tile) {
  const std::int64_t tiles = (rows + row_tile - 1) / row_tile;
  const auto begin = [&](int r) { return std::min(rows, r * tiles / size * row_tile); };
  return {.first = begin(rank), .count = begin(rank + 1) - begin(rank)};
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
  const std::int64_t norm_bytes = 3 * rows_.count * size_of(DType::f64);
  norms_ = team_.backend.allocate(norm_bytes);
  team_.backend.fill_zero(*stream_, norms_.data(), norm_bytes);
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
    const auto norms = [&](int i) {
      return norms_.view<double, 1>({rows_.count}, i * rows_.count * size_of(DType::f64));
    };
    std::vector<NormRows> measured{{.delta = matrix(weights_), .norms = norms(2)}};
    if (baseline_) {
      measured.push_back({.delta = matrix(baseline_), .norms = norms(1)});
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
                                   .row_loss = norms(0),
                                   .row_tile = row_tile_});
    } else {
      measured.push_back({.delta = matrix(delta_), .norms = norms(0)});
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

std::vector<RowStatistics> RowSolver::statistics(const Factorization* factorization) {
  Backend& backend = team_.backend;
  const auto count = static_cast<std::size_t>(rows_.count);
  std::vector<RowStatistics> rows(count);
  if (empty()) {
    return rows;
  }
  // The solve's own loss is the damped one.
  Buffer extra;
  RowStatisticsArgs args{.bits = spec_.bits,
                         .delta = matrix(delta_),
                         .codes = codes(),
                         .group = order_.group(),
                         .scales = places_.scales,
                         .damping_share = {},
                         .saturated = {},
                         .non_finite = {}};
  if (solved_ && factorization != nullptr) {
    extra = upload(backend, *stream_, std::span<const double>(factorization->diagonal.extra));
    args.extra = extra.view<const double, 1>({n_});
  }
  const Buffer shares = backend.allocate(rows_.count * size_of(DType::f64));
  const Buffer counts = backend.allocate(2 * rows_.count * size_of(DType::i32));
  args.damping_share = shares.view<double, 1>({rows_.count});
  args.saturated = counts.view<std::int32_t, 1>({rows_.count});
  args.non_finite = counts.view<std::int32_t, 1>({rows_.count}, rows_.count * size_of(DType::i32));
  backend.row_statistics(*stream_, args);

  std::vector<double> norms(3 * count);
  std::vector<double> damping(count);
  std::vector<std::int32_t> counted(2 * count);
  const auto groups = static_cast<std::size_t>(places_.scales.cols());
  const Buffer scales_memory = backend.allocate_host(rows_.count * places_.scales.cols() * size_of(DType::f32));
  const std::span scales(static_cast<const float*>(scales_memory.data()), count * groups);
  const auto fetch = [&](auto& host, const void* device) {
    backend.copy_to_host(*stream_, host.data(), device, std::ssize(host) * static_cast<std::int64_t>(sizeof(host[0])));
  };
  fetch(norms, norms_.data());
  fetch(damping, shares.data());
  fetch(counted, counts.data());
  backend.copy_to_host(*stream_, scales_memory.data(), places_.scales.data, scales_memory.bytes());
  stream_->synchronize();
  for (std::size_t r = 0; r < count; ++r) {
    const auto own = std::span<const float>(scales).subspan(r * groups, groups);
    rows[r] = {.loss = norms[r] - damping[r],
               .rtn_loss = baseline_ ? norms[count + r] : norms[r] - damping[r],
               .weight_norm = norms[2 * count + r],
               .min_scale = *std::min_element(own.begin(), own.end()),
               .max_scale = *std::max_element(own.begin(), own.end()),
               .saturated_codes = counted[r],
               .non_finite = counted[count + r]};
  }
  return rows;
}

}  // namespace gptqd::gptq
