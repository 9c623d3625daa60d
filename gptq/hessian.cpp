#include "gptq/hessian.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "comm/tree_reduction.hpp"

namespace gptqd::gptq {

namespace {

/// Panels whose partial sums travel together, at most: so many owners receive at a time, so many panels wait.
constexpr int most_panels_together = 4;

/// A [rows, cols] matrix of f32 or f64 in host memory as f64.
std::vector<double> download(Team& team, ConstAnyView<2> matrix) {
  const auto size = static_cast<std::size_t>(matrix.size());
  if (matrix.dtype == DType::f64) {
    std::vector<double> values(size);
    team.backend.copy_to_host(team.stream, values.data(), matrix.data, matrix.bytes());
    team.stream.synchronize();
    return values;
  }
  std::vector<float> values(size);
  team.backend.copy_to_host(team.stream, values.data(), matrix.data, matrix.bytes());
  team.stream.synchronize();
  return {values.begin(), values.end()};
}

/// The panel of a whole matrix, its rows and columns put into factor order.
template <class T>
std::vector<T> panel_of(std::span<const double> matrix, PanelShape shape, std::span<const std::int32_t> index) {
  const auto n = static_cast<std::int64_t>(index.size());
  std::vector<T> panel;
  panel.reserve(static_cast<std::size_t>(shape.rows * shape.cols));
  for (std::int64_t r = shape.first; r < n; ++r) {
    for (std::int64_t c = shape.first; c < shape.first + shape.cols; ++c) {
      const std::int64_t from = index[static_cast<std::size_t>(r)] * n + index[static_cast<std::size_t>(c)];
      panel.push_back(static_cast<T>(matrix[static_cast<std::size_t>(from)]));
    }
  }
  return panel;
}

/// Adds leaves [leaves, n] in a binary tree; the sum is left in the first.
void add_leaves(std::vector<double>& sums, int leaves, std::int64_t n) {
  for (int stride = 1; stride < leaves; stride *= 2) {
    for (int leaf = 0; leaf + stride < leaves; leaf += 2 * stride) {
      double* left = sums.data() + leaf * n;
      const double* right = sums.data() + (leaf + stride) * n;
      for (std::int64_t c = 0; c < n; ++c) {
        left[c] += right[c];
      }
    }
  }
  sums.resize(static_cast<std::size_t>(n));
}

}  // namespace

HessianSource::HessianSource(Team& team, const HessianInput& input, std::int64_t columns, int leaves, std::string layer)
    : team_(team), input_(input), columns_(columns), leaves_(leaves), layer_(std::move(layer)) {
  if (input.matrix) {
    const auto& matrix = *input.matrix;
    if (!input.leaves.empty() || matrix.shape != Shape<2>{columns, columns} || !matrix.is_dense() ||
        (matrix.dtype != DType::f32 && matrix.dtype != DType::f64)) {
      throw Error(
          ErrorKind::internal,
          fmt::format("Hessian of {}: got a matrix {} {} beside {} leaves, expected a dense F32 or F64 matrix [{}, "
                      "{}] and no leaves",
                      layer_, gptqd::name_of(matrix.dtype), to_string(matrix.shape), input.leaves.size(), columns,
                      columns));
    }
    matrix_ = download(team, matrix);
    if (!std::all_of(matrix_.begin(), matrix_.end(), [](double value) { return std::isfinite(value); })) {
      throw_not_finite("the given matrix holds values that are not numbers");
    }
    return;
  }
  const auto own = comm::leaves_of(team.group.rank(), team.group.size(), leaves);
  if (std::ssize(input.leaves) != own.count) {
    throw Error(ErrorKind::internal, fmt::format("Hessian of {}: got {} leaves of activations, expected {} ({} of {})",
                                                 layer_, input.leaves.size(), own.count, own.count, leaves));
  }
  for (int i = 0; i < own.count; ++i) {
    const auto& leaf = input.leaves[static_cast<std::size_t>(i)];
    if (leaf.leaf != own.first + i) {
      throw Error(ErrorKind::internal,
                  fmt::format("Hessian of {}: got leaf {}, expected leaf {}", layer_, leaf.leaf, own.first + i));
    }
    for (const auto& chunk : leaf.chunks) {
      if (chunk.cols() != columns) {
        throw Error(ErrorKind::internal, fmt::format("Hessian of {}: got activations {}, expected [tokens, {}]", layer_,
                                                     to_string(chunk.shape), columns));
      }
    }
  }
}

std::vector<double> HessianSource::diagonal() {
  std::vector<double> sums;
  if (input_.matrix) {
    sums.resize(static_cast<std::size_t>(columns_));
    for (std::int64_t c = 0; c < columns_; ++c) {
      sums[static_cast<std::size_t>(c)] = matrix_[static_cast<std::size_t>(c * (columns_ + 1))];
    }
    require_finite(sums);
    return sums;
  }
  std::vector<double> own(input_.leaves.size() * static_cast<std::size_t>(columns_));
  if (!own.empty()) {
    const auto leaves = static_cast<std::int64_t>(input_.leaves.size());
    Buffer device = team_.backend.allocate(leaves * columns_ * size_of(DType::f64));
    team_.backend.fill_zero(team_.stream, device.data(), leaves * columns_ * size_of(DType::f64));
    for (std::int64_t i = 0; i < leaves; ++i) {
      for (const auto& chunk : input_.leaves[static_cast<std::size_t>(i)].chunks) {
        if (chunk.rows() > 0) {
          team_.backend.column_square_sums(
              team_.stream, {.x = chunk,
                             .sums = device.view<double, 1>({columns_}, i * columns_ * size_of(DType::f64)),
                             .accumulate = true});
        }
      }
    }
    team_.backend.copy_to_host(team_.stream, own.data(), device.data(), leaves * columns_ * size_of(DType::f64));
    team_.stream.synchronize();
  }
  const auto parts = team_.group.all_gather_bytes(std::as_bytes(std::span(own)), "squares of the activations");
  sums.resize(static_cast<std::size_t>(leaves_ * columns_));
  std::size_t offset = 0;
  for (const auto& part : parts) {
    require(offset + part.size() <= sums.size() * sizeof(double), "Hessian: the ranks sent too many leaves");
    std::memcpy(reinterpret_cast<std::byte*>(sums.data()) + offset, part.data(), part.size());
    offset += part.size();
  }
  require(offset == sums.size() * sizeof(double), "Hessian: the ranks sent too few leaves");
  add_leaves(sums, leaves_, columns_);
  require_finite(sums);
  return sums;
}

Panels HessianSource::panels(const PanelLayout& layout, const DeviceOrder& order, DType solver) {
  Panels result(team_, layout, input_.matrix ? solver : DType::f32);
  if (input_.matrix) {
    extract(result, order.host());
  } else {
    accumulate(result, order);
  }
  return result;
}

void HessianSource::extract(Panels& panels, const ColumnOrder& order) {
  const auto copy = [&]<class T>(int k, const std::vector<T>& values) {
    const auto view = panels.view(k);
    team_.backend.copy_to_device(team_.stream, view.data, values.data(), view.bytes());
    team_.stream.synchronize();
  };
  for (int k = 0; k < panels.count(); ++k) {
    if (!panels.owns(k)) {
      continue;
    }
    const auto shape = panels.layout().at(k);
    if (panels.dtype() == DType::f64) {
      copy(k, panel_of<double>(matrix_, shape, order.index));
    } else {
      copy(k, panel_of<float>(matrix_, shape, order.index));
    }
  }
}

void HessianSource::accumulate(Panels& panels, const DeviceOrder& order) {
  Backend& backend = team_.backend;
  Stream& stream = team_.stream;
  const auto& layout = panels.layout();
  reorder_activations(order.index());
  const auto shape_of = [&](int k) { return Shape<2>{layout.at(k).rows, layout.at(k).cols}; };
  comm::TreeSum tree(
      {.allocate = [&](std::int64_t bytes) { return backend.allocate(bytes); },
       .add = [&](Stream& on, AnyView<2> sum, ConstAnyView<2> x) { backend.add(on, {.x = x, .y = sum}); },
       .copy = [&](Stream& on, AnyView<2> to, ConstAnyView<2> from) { backend.convert(on, {.x = from, .y = to}); }},
      panels.dtype(), shape_of(layout.count() - 1), leaves_);
  const int ranks = team_.communicator.size();
  const int together = std::min(ranks, most_panels_together);
  comm::TreeReduction on_the_way(team_.communicator);
  for (int k = layout.count() - 1; k >= 0;) {
    comm::TreeReduction next(team_.communicator);
    const int end = std::max(-1, k - together);
    const auto what = fmt::format("Hessian panels {} to {} of {}", k, end + 1, layer_);
    for (; k > end; --k) {
      tree.restart(shape_of(k));
      add_leaves_of_panel(tree, layout.at(k));
      next.add(tree, panels.owner(k), panels.owns(k) ? panels.view(k) : AnyView<2>{}, what);
    }
    next.start(stream, what);
    on_the_way.finish(stream, tree);
    on_the_way = std::move(next);
    if (ranks == 1) {
      on_the_way.finish(stream, tree);
    }
  }
  on_the_way.finish(stream, tree);
  reorder_activations(order.position());
}

void HessianSource::add_leaves_of_panel(comm::TreeSum& tree, PanelShape shape) {
  for (const auto& leaf : input_.leaves) {
    const auto sum = tree.next();
    bool accumulate = false;
    for (const auto& chunk : leaf.chunks) {
      if (chunk.rows() == 0) {
        continue;
      }
      team_.backend.gram_panel(
          team_.stream, {.x = chunk.slice_cols(shape.first, shape.rows), .panel = sum, .accumulate = accumulate});
      accumulate = true;
    }
    if (!accumulate) {
      team_.backend.fill_zero(team_.stream, sum.data, sum.bytes());
    }
    tree.push(team_.stream, leaf.leaf);
  }
}

void HessianSource::reorder_activations(DeviceOrder::Map index) {
  for (const auto& leaf : input_.leaves) {
    for (const auto& chunk : leaf.chunks) {
      if (chunk.rows() > 0) {
        team_.backend.gather_columns(team_.stream, {.x = chunk, .index = index, .y = chunk});
      }
    }
  }
}

void HessianSource::require_finite(std::span<const double> diagonal) {
  const auto bad = std::find_if(diagonal.begin(), diagonal.end(), [](double value) { return !std::isfinite(value); });
  if (bad != diagonal.end()) {
    const auto count = std::count_if(bad, diagonal.end(), [](double value) { return !std::isfinite(value); });
    throw_not_finite(fmt::format("{} of {} diagonal values are infinite or not numbers", count, diagonal.size()));
  }
}

void HessianSource::throw_not_finite(const std::string& what) {
  std::string answer;
  if (input_.find_non_finite) {
    answer = input_.find_non_finite().value_or("");
  }
  const auto answers = team_.group.all_gather_bytes(std::as_bytes(std::span(answer)), "non-finite activations");
  const auto first = std::find_if(answers.begin(), answers.end(), [](const auto& bytes) { return !bytes.empty(); });
  if (first != answers.end()) {
    answer.assign(reinterpret_cast<const char*>(first->data()), first->size());
  }
  throw Error(
      ErrorKind::input,
      fmt::format("Hessian of {} is not finite: {}; check the checkpoint's weights, or remove that sample from the "
                  "calibration text",
                  layer_, answer.empty() ? what : answer));
}

}  // namespace gptqd::gptq
