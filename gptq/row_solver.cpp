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

/// What the statistics need of some rows, in host memory.
template <class T>
struct HostRows {
  std::vector<T> delta;             // [rows, n]
  std::vector<std::uint8_t> codes;  // [rows, n]
};

/// Σ_a extra[a]·delta[a]².
template <class T>
double damping_share(std::span<const T> delta, std::span<const double> extra) {
  double sum = 0;
  for (std::size_t a = 0; a < delta.size(); ++a) {
    const double value = delta[a];
    sum += extra[a] * value * value;
  }
  return sum;
}

/// Codes at an end of the range that lie further than half a step from their weight.
template <class T>
std::int64_t count_saturated(std::span<const T> delta, std::span<const std::uint8_t> codes,
                             std::span<const float> scales, std::span<const std::int32_t> group, int bits) {
  const int last = (1 << bits) - 1;
  std::int64_t count = 0;
  for (std::size_t a = 0; a < delta.size(); ++a) {
    if (codes[a] == 0 || codes[a] == last) {
      const double half_step = 0.5 * scales[static_cast<std::size_t>(group[a])];
      count += std::abs(static_cast<double>(delta[a])) > half_step * (1 + 1e-6) ? 1 : 0;
    }
  }
  return count;
}

template <class T>
void add_host_statistics(Team& team, ConstAnyView<2> delta, ConstTensorView<std::uint8_t, 2> codes,
                         std::span<const float> scales, std::span<const std::int32_t> group, int bits,
                         std::span<const double> extra, std::span<RowStatistics> rows) {
  const std::int64_t n = delta.cols();
  const auto width = static_cast<std::size_t>(n);
  const std::size_t groups = scales.size() / rows.size();
  const std::int64_t step = std::min(delta.rows(), rows_of_scratch(n * size_of(delta.dtype)));
  HostRows<T> host{.delta = std::vector<T>(static_cast<std::size_t>(step * n)),
                   .codes = std::vector<std::uint8_t>(static_cast<std::size_t>(step * n))};
  for (std::int64_t first = 0; first < delta.rows(); first += step) {
    const std::int64_t count = std::min(step, delta.rows() - first);
    team.backend.copy_to_host(team.stream, host.delta.data(), delta.slice_rows(first, count).data,
                              count * n * size_of(delta.dtype));
    team.backend.copy_to_host(team.stream, host.codes.data(), codes.row(first), count * n);
    team.stream.synchronize();
    for (std::int64_t i = 0; i < count; ++i) {
      const auto row = static_cast<std::size_t>(first + i);
      const auto offset = static_cast<std::size_t>(i) * width;
      const auto errors = std::span<const T>(host.delta).subspan(offset, width);
      rows[row].saturated_codes =
          count_saturated(errors, std::span<const std::uint8_t>(host.codes).subspan(offset, width),
                          scales.subspan(row * groups, groups), group, bits);
      rows[row].non_finite = std::count_if(errors.begin(), errors.end(), [](T value) { return !std::isfinite(value); });
      if (!extra.empty()) {
        rows[row].loss -= damping_share(errors, extra);
      }
    }
  }
}

}  // namespace

RowRange rows_of(int rank, int size, std::int64_t rows, std::int64_t row_tile) {
  const std::int64_t tiles = (rows + row_tile - 1) / row_tile;
  const auto begin = [&](int r) { return std::min(rows, r * tiles / size * row_tile); };
  return {.first = begin(rank), .count = begin(rank + 1) - begin(rank)};
}

RowSolver::RowSolver(Team& team, std::span<const LinearWeight> linears, RowRange rows, const DeviceOrder& order,
                     const QuantSpec& spec, std::int64_t row_tile, const Places& places)
    : team_(team), rows_(rows), order_(order), spec_(spec), n_(order.columns()), row_tile_(row_tile), places_(places) {
  if (empty()) {
    return;
  }
  const std::int64_t matrix_bytes = rows_.count * n_ * size_of(spec_.solver);
  weights_ = team_.backend.allocate(matrix_bytes);
  delta_ = team_.backend.allocate(matrix_bytes);
  codes_ = team_.backend.allocate(rows_.count * n_);
  const std::int64_t norm_bytes = 3 * rows_.count * size_of(DType::f64);
  norms_ = team_.backend.allocate(norm_bytes);
  team_.backend.fill_zero(team_.stream, norms_.data(), norm_bytes);
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
    backend.gather_columns(team_.stream, {.x = weight, .index = order_.index(), .y = rows});
    return;
  }
  const std::int64_t step = std::min(weight.rows(), rows_of_scratch(n_ * size_of(weight.dtype)));
  const Buffer scratch = backend.allocate(step * n_ * size_of(weight.dtype));
  for (std::int64_t first = 0; first < weight.rows(); first += step) {
    const std::int64_t count = std::min(step, weight.rows() - first);
    const auto gathered = scratch.any_view<2>(weight.dtype, {count, n_});
    backend.gather_columns(team_.stream,
                           {.x = weight.slice_rows(first, count), .index = order_.index(), .y = gathered});
    backend.convert(team_.stream, {.x = gathered, .y = rows.slice_rows(first, count)});
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
        backend.convert(team_.stream, {.x = weights, .y = converted});
        zero_columns(converted, zeroed_columns);
        weights = converted;
      }
      backend.find_grids(team_.stream, {.spec = spec_.grid(),
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
  team_.backend.copy_to_host(team_.stream, host.data(), matrix.data, matrix.bytes());
  team_.stream.synchronize();
  const std::int64_t element = size_of(matrix.dtype);
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    for (const std::int32_t column : columns) {
      std::fill_n(host.begin() + (r * matrix.cols() + column) * element, element, std::byte{0});
    }
  }
  team_.backend.copy_to_device(team_.stream, matrix.data, host.data(), matrix.bytes());
  team_.stream.synchronize();
}

void RowSolver::round_to_nearest() {
  if (empty()) {
    return;
  }
  find_grids({});
  team_.backend.round_to_grids(team_.stream, {.bits = spec_.bits,
                                              .weights = matrix(weights_),
                                              .group = order_.group(),
                                              .scales = places_.scales,
                                              .zeros = places_.zeros,
                                              .codes = codes(),
                                              .delta = matrix(delta_)});
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
  team_.backend.obq(team_.stream, {.bits = spec_.bits,
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
  Stream& stream = team_.stream;
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
    const auto measure = [&](const Buffer& rows, int i) {
      backend.weighted_norms(stream, {.factor = panel,
                                      .first = first,
                                      .delta = matrix(rows),
                                      .extra = extra,
                                      .norms = norms(i),
                                      .row_tile = row_tile_});
    };
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
      measure(delta_, 0);
    }
    if (baseline_) {
      measure(baseline_, 1);
    }
    measure(weights_, 2);
  }
}

void RowSolver::pack() {
  if (empty()) {
    return;
  }
  team_.backend.pack_rows(
      team_.stream, {.bits = spec_.bits, .codes = codes(), .position = order_.position(), .packed = places_.packed});
}

std::vector<RowStatistics> RowSolver::statistics(const Factorization* factorization) {
  const auto count = static_cast<std::size_t>(rows_.count);
  std::vector<RowStatistics> rows(count);
  if (empty()) {
    return rows;
  }
  std::vector<double> norms(3 * count);
  const auto groups = static_cast<std::size_t>(places_.scales.cols());
  std::vector<float> scales(count * groups);
  team_.backend.copy_to_host(team_.stream, norms.data(), norms_.data(), std::ssize(norms) * size_of(DType::f64));
  team_.backend.copy_to_host(team_.stream, scales.data(), places_.scales.data,
                             std::ssize(scales) * size_of(DType::f32));
  team_.stream.synchronize();
  for (std::size_t r = 0; r < count; ++r) {
    const auto own = std::span<const float>(scales).subspan(r * groups, groups);
    rows[r] = {.loss = norms[r],
               .rtn_loss = baseline_ ? norms[count + r] : norms[r],
               .weight_norm = norms[2 * count + r],
               .min_scale = *std::min_element(own.begin(), own.end()),
               .max_scale = *std::max_element(own.begin(), own.end()),
               .saturated_codes = 0,
               .non_finite = 0};
  }
  // The solve's own loss is the damped one.
  const auto extra = solved_ && factorization != nullptr ? std::span<const double>(factorization->diagonal.extra)
                                                         : std::span<const double>();
  const auto add = [&]<class T>(T) {
    add_host_statistics<T>(team_, matrix(delta_), codes(), scales, order_.host().factor.group, spec_.bits, extra, rows);
  };
  if (spec_.solver == DType::f64) {
    add(double{});
  } else {
    add(float{});
  }
  return rows;
}

}  // namespace gptqd::gptq
