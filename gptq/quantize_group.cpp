#include "gptq/quantize_group.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "gptq/column_order.hpp"
#include "gptq/factorization.hpp"
#include "gptq/group_memory.hpp"
#include "gptq/obq_inverse.hpp"
#include "gptq/panels.hpp"
#include "gptq/row_solver.hpp"

namespace gptqd::gptq {

namespace {

/// Waits for the stream when a scope is left: host memory that its work reads or writes must outlive the work.
class DrainOnExit {
 public:
  explicit DrainOnExit(Stream* stream) : stream_(stream) {}
  DrainOnExit(const DrainOnExit&) = delete;
  DrainOnExit& operator=(const DrainOnExit&) = delete;
  ~DrainOnExit() {
    try {
      if (stream_ != nullptr) {
        stream_->synchronize();
      }
    } catch (...) {
      // What the work threw reaches the caller by its own synchronize(): the stream keeps refusing work.
    }
  }

 private:
  Stream* stream_;
};

std::string names_of(std::span<const LinearWeight> linears) {
  std::vector<std::string_view> names;
  for (const auto& linear : linears) {
    names.push_back(linear.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Group sizes in use that divide `columns`, for messages.
std::string possible_group_sizes(std::int64_t columns) {
  std::vector<std::int64_t> sizes;
  for (const std::int64_t size : {std::int64_t{1024}, std::int64_t{512}, std::int64_t{256}, std::int64_t{128},
                                  std::int64_t{64}, std::int64_t{32}, std::int64_t{16}, std::int64_t{8}}) {
    if (columns % size == 0) {
      sizes.push_back(size);
    }
  }
  sizes.push_back(-1);
  return fmt::format("{}", fmt::join(sizes, ", "));
}

void check(std::span<const LinearWeight> linears, const std::optional<HessianInput>& hessian, const QuantSpec& spec,
           const Partition& partition) {
  validate(spec);
  validate(partition);
  require(!linears.empty(), "quantize: no linears");
  const std::int64_t columns = linears.front().weight.cols();
  for (const auto& linear : linears) {
    const auto& weight = linear.weight;
    if (weight.rows() < 1 || weight.cols() < 1) {
      throw Error(ErrorKind::input, fmt::format("{}: got a weight {}, expected at least one row and one column",
                                                linear.name, to_string(weight.shape)));
    }
    require(weight.cols() == columns, fmt::format("quantize: {} has {} columns, {} has {}: they do not share one input",
                                                  linears.front().name, columns, linear.name, weight.cols()));
    if (columns % spec.group_columns(columns) != 0) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: --group-size {} does not divide its {} columns; sizes that do: {}; or leave this layer "
                      "unquantized",
                      linear.name, spec.group_size, columns, possible_group_sizes(columns)));
    }
    if (columns * spec.bits % 32 != 0) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: {} columns of {} bits do not fill whole 32-bit words, which every artifact format needs; "
                      "leave this layer unquantized, or take other --bits",
                      linear.name, columns, spec.bits));
    }
  }
  if (spec.method == Method::obq && columns > max_obq_columns) {
    throw Error(ErrorKind::usage,
                fmt::format("{}: --method obq inverts the whole Hessian again for every weight and takes at "
                            "most {} columns, got {}; use --method gptq",
                            linears.front().name, max_obq_columns, columns));
  }
  if (!hessian && (spec.method != Method::rtn || spec.clip == Clip::hessian)) {
    throw Error(
        ErrorKind::usage,
        fmt::format("{}: --method {} with --clip {} needs calibration data; give --calibration, or use --method rtn "
                    "with --clip mse",
                    linears.front().name, name_of(spec.method), name_of(spec.clip)));
  }
}

/// H's blocks [groups, group, group] of the groups, on every rank.
Buffer gather_blocks(Team& team, const Panels& hessian, const DeviceOrder& order, Shape<3> shape) {
  Backend& backend = team.backend;
  const std::int64_t count = shape[0] * shape[1] * shape[2];
  const std::int64_t bytes = count * size_of(DType::f32);
  Buffer own = backend.allocate(bytes);
  backend.fill_zero(team.stream, own.data(), bytes);
  for (int k = 0; k < hessian.count(); ++k) {
    if (hessian.owns(k)) {
      backend.gather_group_blocks(team.stream, {.panel = hessian.view(k),
                                                .first = hessian.layout().at(k).first,
                                                .group = order.group(),
                                                .member = order.member(),
                                                .blocks = own.view<float, 3>(shape)});
    }
  }
  if (hessian.is_whole()) {
    return own;
  }
  // Every entry comes from one rank and is zero on the others: any order of additions gives the same bits.
  Buffer sum = backend.allocate(bytes);
  backend.fill_zero(team.stream, sum.data(), bytes);
  Buffer received = backend.allocate(bytes);
  const Shape<2> flat{shape[0] * shape[1], shape[2]};
  for (int root = 0; root < team.communicator.size(); ++root) {
    const Buffer& source = root == team.communicator.rank() ? own : received;
    team.communicator.broadcast(team.stream, source.data(), bytes, root, "the Hessian's blocks of groups").wait();
    backend.add(team.stream, {.x = source.any_view<2>(DType::f32, flat), .y = sum.any_view<2>(DType::f32, flat)});
  }
  return sum;
}

/// One linears' group on its way through; its members outlive the stream's work on them.
class GroupQuantizer {
 public:
  GroupQuantizer(Team& team, std::span<const LinearWeight> linears, const std::optional<HessianInput>& hessian,
                 const QuantSpec& spec, const Partition& partition, StageSeconds& seconds)
      : team_(team),
        linears_(linears),
        hessian_(hessian),
        spec_(spec),
        partition_(partition),
        seconds_(seconds),
        columns_(linears.front().weight.cols()),
        groups_(spec.groups(columns_)),
        words_(columns_ * spec.bits / 32) {
    for (const auto& linear : linears) {
      rows_ += linear.weight.rows();
    }
    for (int rank = 0; rank < team.group.size(); ++rank) {
      shares_.push_back(rows_of(rank, team.group.size(), rows_, partition.row_tile));
    }
  }

  std::vector<QuantizedLinear> run();

 private:
  RowRange own() const { return shares_[static_cast<std::size_t>(team_.group.rank())]; }
  /// Ends a stage: waits for its work and adds its time to `seconds`.
  void end_stage(double& seconds);
  void factor_hessian(HessianSource& source, const DeviceOrder& order);
  void round_rows(const DeviceOrder& order);
  void solve_rows();
  void gather_results();
  /// Each linear's own codes and grids; the records are still to come.
  std::vector<QuantizedLinear> split_results();
  Buffer part_of(const Buffer& whole, std::int64_t row_bytes, std::int64_t first, std::int64_t rows) const;
  LayerRecord record(const LinearWeight& linear, std::span<const RowStatistics> rows) const;

  Team& team_;
  std::span<const LinearWeight> linears_;
  const std::optional<HessianInput>& hessian_;
  const QuantSpec& spec_;
  const Partition& partition_;
  StageSeconds& seconds_;
  std::chrono::steady_clock::time_point mark_ = std::chrono::steady_clock::now();
  std::int64_t columns_;
  std::int64_t groups_;
  std::int64_t words_;
  std::int64_t rows_ = 0;
  std::vector<RowRange> shares_;

  ColumnOrder order_;
  std::optional<Factorization> factorization_;
  std::vector<std::int32_t> dead_;  // factor order
  Buffer blocks_;                   // of Clip::hessian
  std::optional<RowSolver> solver_;
  Buffer inverse_;   // of Method::obq
  Buffer packed_;    // u32 [rows, words]
  Buffer scales_;    // f32 [rows, groups]
  Buffer zeros_;     // u8 [rows, groups]
  Buffer measured_;  // of rows, by ranks: RowSolver
  Buffer on_host_;   // a copy of it
  Event measured_on_host_;
};

std::vector<QuantizedLinear> GroupQuantizer::run() {
  const auto start = std::chrono::steady_clock::now();
  const DrainOnExit drain(&team_.stream);
  const DrainOnExit drain_beside(team_.beside);
  const ActOrder act_order = spec_.order();
  std::optional<HessianSource> source;
  std::vector<double> diagonal;
  if (hessian_) {
    source.emplace(team_, *hessian_, columns_, partition_.leaves, names_of(linears_));
    if (act_order != ActOrder::none) {
      diagonal = source->diagonal();
    }
  }
  order_ = make_column_order(columns_, spec_.group_columns(columns_), act_order, diagonal);
  const DeviceOrder order(team_.backend, team_.stream, order_);
  if (source) {
    factor_hessian(*source, order);
  } else {
    round_rows(order);
  }
  solve_rows();
  gather_results();
  auto results = split_results();
  measured_on_host_.synchronize();
  const bool has_baseline = spec_.method != Method::rtn && factorization_ && factorization_->factor;
  const auto statistics = statistics_of(on_host_, shares_, has_baseline);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto rows =
        std::span(statistics).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(results[i].rows));
    results[i].record = record(linears_[i], rows);
    first += results[i].rows;
  }
  end_stage(seconds_.finish);
  const std::chrono::duration<double> seconds = mark_ - start;
  for (auto& result : results) {
    result.record.seconds = seconds.count() * static_cast<double>(result.rows) / static_cast<double>(rows_);
  }
  return results;
}

void GroupQuantizer::end_stage(double& seconds) {
  team_.stream.synchronize();
  const auto now = std::chrono::steady_clock::now();
  seconds += std::chrono::duration<double>(now - mark_).count();
  mark_ = now;
}

void GroupQuantizer::factor_hessian(HessianSource& source, const DeviceOrder& order) {
  const auto layout = panel_layout(columns_, spec_, partition_);
  const auto memory = group_memory(
      {.rows = rows_, .columns = columns_, .ranks = team_.group.size(), .rank = team_.group.rank()}, spec_, partition_,
      /*calibrated=*/true);
  Panels hessian = source.panels(layout, order, spec_.solver, memory.room() + hessian_->spare_bytes);
  if (columns_ <= partition_.whole_columns) {
    hessian.make_whole(team_, "panels of the Hessian");
  }
  const auto diagonal = gather_diagonal(team_, hessian);
  source.require_finite(diagonal);
  dead_ = dead_columns(diagonal);
  end_stage(seconds_.hessian);
  if (spec_.clip == Clip::hessian) {
    blocks_ = gather_blocks(team_, hessian, order, {groups_, spec_.group_size, spec_.group_size});
  }
  // A factorization is a chain of small steps: grids are found beside it where there is a stream for that.
  round_rows(order);
  factorization_ = factorize(team_, hessian, diagonal, spec_);
  if (spec_.method == Method::obq && factorization_->factor) {
    inverse_ = invert_hessian(team_, hessian, factorization_->diagonal.values, names_of(linears_));
  }
  end_stage(seconds_.factor);
}

void GroupQuantizer::round_rows(const DeviceOrder& order) {
  packed_ = team_.backend.allocate(rows_ * words_ * size_of(DType::u32));
  scales_ = team_.backend.allocate(rows_ * groups_ * size_of(DType::f32));
  zeros_ = team_.backend.allocate(rows_ * groups_);
  measured_ = team_.backend.allocate(rows_ * RowSolver::measured_bytes);
  RowSolver::Places places{
      .scales = scales_.view<float, 2>({rows_, groups_}).slice_rows(own().first, own().count),
      .zeros = zeros_.view<std::uint8_t, 2>({rows_, groups_}).slice_rows(own().first, own().count),
      .packed = packed_.view<std::uint32_t, 2>({rows_, words_}).slice_rows(own().first, own().count),
      .blocks = {},
      .measured = &measured_};
  if (blocks_) {
    places.blocks = blocks_.view<const float, 3>({groups_, spec_.group_size, spec_.group_size});
  }
  Stream& stream = team_.beside != nullptr ? *team_.beside : team_.stream;
  if (team_.beside != nullptr) {
    stream.wait(team_.stream.record());
  }
  solver_.emplace(team_, stream, linears_, own(), order, spec_, partition_.row_tile, places);
  solver_->round_to_nearest();
  if (team_.beside == nullptr) {
    end_stage(seconds_.grids);
  }
}

void GroupQuantizer::solve_rows() {
  auto& solver = *solver_;
  solver.join();
  end_stage(seconds_.grids);
  const bool factored = factorization_ && factorization_->factor;
  if (factored) {
    if (spec_.method != Method::rtn) {
      solver.begin_solve(dead_);
    }
    if (spec_.method == Method::obq) {
      solver.solve_obq(inverse_.view<const double, 2>({columns_, columns_}));
    }
    if (spec_.method == Method::gptq) {
      solver.solve(*factorization_);
    } else {
      solver.measure(*factorization_);
    }
  }
  end_stage(seconds_.solve);
  solver.pack();
  solver.measure_result(factored ? &*factorization_ : nullptr);
}

void GroupQuantizer::gather_results() {
  const auto parts_of = [&](const Buffer& whole, std::int64_t row_bytes) {
    comm::Gathered array{.whole = whole.data(), .parts = {}};
    for (const auto& share : shares_) {
      array.parts.push_back({.offset_bytes = share.first * row_bytes, .bytes = share.count * row_bytes});
    }
    return array;
  };
  const std::array arrays{parts_of(measured_, RowSolver::measured_bytes),
                          parts_of(packed_, words_ * size_of(DType::u32)),
                          parts_of(scales_, groups_ * size_of(DType::f32)), parts_of(zeros_, groups_)};
  team_.communicator.all_gather(team_.stream, arrays, "codes, grids and losses");
  on_host_ = team_.backend.allocate_host(measured_.bytes());
  team_.backend.copy_to_host(team_.stream, on_host_.data(), measured_.data(), measured_.bytes());
  measured_on_host_ = team_.stream.record();
}

std::vector<QuantizedLinear> GroupQuantizer::split_results() {
  std::vector<QuantizedLinear> results;
  std::int64_t first = 0;
  for (const auto& linear : linears_) {
    const std::int64_t rows = linear.weight.rows();
    results.push_back(
        {.name = linear.name,
         .rows = rows,
         .cols = columns_,
         .groups = groups_,
         .packed = part_of(packed_, words_ * size_of(DType::u32), first, rows),
         .scales = part_of(scales_, groups_ * size_of(DType::f32), first, rows),
         .zeros = part_of(zeros_, groups_, first, rows),
         .g_idx = upload(team_.backend, team_.stream, std::span<const std::int32_t>(order_.original.group)),
         .record = {}});
    first += rows;
  }
  return results;
}

Buffer GroupQuantizer::part_of(const Buffer& whole, std::int64_t row_bytes, std::int64_t first,
                               std::int64_t rows) const {
  Buffer part = team_.backend.allocate(rows * row_bytes);
  team_.backend.copy(team_.stream, part.data(), static_cast<const std::byte*>(whole.data()) + first * row_bytes,
                     rows * row_bytes);
  return part;
}

LayerRecord GroupQuantizer::record(const LinearWeight& linear, std::span<const RowStatistics> rows) const {
  LayerRecord result;
  result.name = linear.name;
  result.rows = linear.weight.rows();
  result.cols = columns_;
  RowStatistics sum;
  sum.min_scale = rows.front().min_scale;
  sum.max_scale = rows.front().max_scale;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto& row = rows[r];
    if (row.non_finite > 0) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: row {} holds weights that are infinite or not numbers, or grows to such; check the "
                              "checkpoint",
                              linear.name, r));
    }
    sum.loss += row.loss;
    sum.rtn_loss += row.rtn_loss;
    sum.weight_norm += row.weight_norm;
    sum.min_scale = std::min(sum.min_scale, row.min_scale);
    sum.max_scale = std::max(sum.max_scale, row.max_scale);
    sum.saturated_codes += row.saturated_codes;
  }
  result.min_scale = sum.min_scale;
  result.max_scale = sum.max_scale;
  result.saturated_codes = sum.saturated_codes;
  if (!factorization_) {
    return result;
  }
  result.tokens = hessian_->tokens;
  result.dead_columns = std::ssize(dead_);
  result.retries = factorization_->retries;
  if (!factorization_->factor) {
    result.fallback = spec_.method != Method::rtn;
    return result;
  }
  result.damping = factorization_->damping;
  if (sum.weight_norm > 0 && result.dead_columns < columns_) {
    // Taking the damping's share away again may leave a rounding error below zero.
    result.loss = std::max(0.0, sum.loss / sum.weight_norm);
    result.rtn_loss = std::max(0.0, sum.rtn_loss / sum.weight_norm);
    result.weight_norm = sum.weight_norm;
  }
  return result;
}

}  // namespace

void QuantizedLinear::dequantize(Backend& backend, Stream& stream, int bits, DType stored, AnyView<2> weight) const {
  backend.dequantize(stream, {.bits = bits,
                              .packed = packed.view<const std::uint32_t, 2>({rows, cols * bits / 32}),
                              .scales = scales.view<const float, 2>({rows, groups}),
                              .zeros = zeros.view<const std::uint8_t, 2>({rows, groups}),
                              .group = g_idx.view<const std::int32_t, 1>({cols}),
                              .stored = stored,
                              .weight = weight});
}

std::vector<QuantizedLinear> quantize_group(Team& team, std::span<const LinearWeight> linears,
                                            const std::optional<HessianInput>& hessian, const QuantSpec& spec,
                                            const Partition& partition, StageSeconds* seconds) {
  check(linears, hessian, spec, partition);
  StageSeconds unasked;
  return with_context(fmt::format("quantizing {}", names_of(linears)), [&] {
    return GroupQuantizer(team, linears, hessian, spec, partition, seconds == nullptr ? unasked : *seconds).run();
  });
}

}  // namespace gptqd::gptq
