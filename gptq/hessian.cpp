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
void add_in_a_tree(std::vector<double>& sums, int leaves, std::int64_t n) {
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

std::int64_t bytes_of(PanelShape shape) { return shape.rows * shape.cols * size_of(DType::f32); }

/// Buffers of one panel's tree on a rank.
struct TreeBuffers {
  std::int64_t computing = 0;  ///< while its leaves are pushed
  std::int64_t own = 0;        ///< nodes that are left then
  std::int64_t received = 0;   ///< nodes that it gets of other ranks for a panel of its own
};
TreeBuffers tree_buffers(int ranks, int rank, int leaves) {
  const auto nodes = [&](int r) {
    return static_cast<std::int64_t>(comm::nodes_of(comm::leaves_of(r, ranks, leaves)).size());
  };
  TreeBuffers buffers{.computing = comm::most_buffers(comm::leaves_of(rank, ranks, leaves)), .own = nodes(rank)};
  for (int r = 0; r < ranks; ++r) {
    buffers.received += r == rank ? 0 : nodes(r);
  }
  return buffers;
}

}  // namespace

std::int64_t ActivationChunk::rows() const {
  std::int64_t sum = 0;
  for (const auto& part : parts) {
    sum += part.rows();
  }
  return sum;
}

std::int64_t ActivationChunk::bytes() const {
  std::int64_t sum = 0;
  for (const auto& part : parts) {
    sum += part.bytes();
  }
  return sum;
}

namespace {

/// Device bytes, beside H, of the sums of panels that are made one after another.
std::int64_t sums_bytes(const PanelLayout& layout, int ranks, int rank, int leaves) {
  const auto tree = tree_buffers(ranks, rank, leaves);
  const int together = std::min(ranks, most_panels_together);
  std::int64_t most = 0;
  std::int64_t size = 0;        // of a buffer: they serve all panels
  std::int64_t on_the_way = 0;  // of the panels before
  for (int k = layout.count() - 1; k >= 0;) {
    std::int64_t bytes = 0;
    for (const int end = std::max(-1, k - together); k > end; --k) {
      size = std::max(size, bytes_of(layout.at(k)));
      most = std::max(most, on_the_way + bytes + tree.computing * size);
      bytes += (tree.own + (k % ranks == rank ? tree.received : 0)) * size;
    }
    most = std::max(most, on_the_way + bytes);
    on_the_way = ranks == 1 ? 0 : bytes;
  }
  return most;
}

}  // namespace

ResidentWay resident_way(const PanelLayout& layout, int ranks, int rank, int leaves, std::int64_t chunk_bytes,
                         std::int64_t room) {
  if (ranks == 1) {
    const auto passes = panel_passes(layout, ranks, leaves, room - chunk_bytes);
    const std::int64_t bytes = passes.front().bytes + chunk_bytes;
    if (passes.size() == 1 && bytes <= room) {
      return {.copies = true, .bytes = bytes};
    }
  }
  return {.copies = false, .bytes = sums_bytes(layout, ranks, rank, leaves)};
}

std::vector<PanelPass> panel_passes(const PanelLayout& layout, int ranks, int leaves, std::int64_t room) {
  // The same on every rank; an owner has every ranks-th panel.
  std::int64_t buffers = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto tree = tree_buffers(ranks, rank, leaves);
    buffers = std::max(buffers, tree.computing + (tree.received + ranks - 1) / ranks);
  }
  const auto sums = [&](int k) { return bytes_of(layout.at(k)) * buffers; };
  const int least = std::min(ranks, most_panels_together);
  std::vector<PanelPass> passes;
  for (int k = layout.count() - 1; k >= 0; --k) {
    if (passes.empty() || (passes.back().first - k >= least && passes.back().bytes + sums(k) > room)) {
      passes.push_back({.first = k, .last = k, .bytes = 0});
    }
    passes.back().last = k;
    passes.back().bytes += sums(k);
  }
  return passes;
}

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
      require(input.upload != nullptr || chunk.parts.size() <= 1,
              fmt::format("Hessian of {}: a chunk on the device comes in {} parts", layer_, chunk.parts.size()));
      for (const auto& part : chunk.parts) {
        if (part.cols() != columns) {
          throw Error(ErrorKind::internal, fmt::format("Hessian of {}: got activations {}, expected [tokens, {}]",
                                                       layer_, to_string(part.shape), columns));
        }
      }
    }
  }
  require(!input.square_sums || input.square_sums->shape == Shape<2>{own.count, columns},
          fmt::format("Hessian of {}: got sums of squares of another shape than [{}, {}]", layer_, own.count, columns));
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
  const auto own = own_square_sums();
  const auto parts = team_.group.all_gather_bytes(std::as_bytes(std::span(own)), "squares of the activations");
  sums.resize(static_cast<std::size_t>(leaves_ * columns_));
  std::size_t offset = 0;
  for (const auto& part : parts) {
    require(offset + part.size() <= sums.size() * sizeof(double), "Hessian: the ranks sent too many leaves");
    std::memcpy(reinterpret_cast<std::byte*>(sums.data()) + offset, part.data(), part.size());
    offset += part.size();
  }
  require(offset == sums.size() * sizeof(double), "Hessian: the ranks sent too few leaves");
  add_in_a_tree(sums, leaves_, columns_);
  require_finite(sums);
  return sums;
}

std::vector<double> HessianSource::own_square_sums() {
  std::vector<double> own(input_.leaves.size() * static_cast<std::size_t>(columns_));
  if (own.empty()) {
    return own;
  }
  const auto leaves = static_cast<std::int64_t>(input_.leaves.size());
  const std::int64_t bytes = leaves * columns_ * size_of(DType::f64);
  if (input_.square_sums) {
    team_.backend.copy_to_host(team_.stream, own.data(), input_.square_sums->data, bytes);
    team_.stream.synchronize();
    return own;
  }
  Buffer device = team_.backend.allocate(bytes);
  team_.backend.fill_zero(team_.stream, device.data(), bytes);
  std::optional<UploadRing> ring;
  if (input_.upload != nullptr) {
    ring.emplace(team_.backend, team_.stream, *input_.upload, largest_chunk_bytes());
  }
  for (std::int64_t i = 0; i < leaves; ++i) {
    visit_chunks(input_.leaves[static_cast<std::size_t>(i)], ring ? &*ring : nullptr, [&](AnyView<2> x) {
      team_.backend.column_square_sums(
          team_.stream,
          {.x = x, .sums = device.view<double, 1>({columns_}, i * columns_ * size_of(DType::f64)), .accumulate = true});
    });
  }
  team_.backend.copy_to_host(team_.stream, own.data(), device.data(), bytes);
  team_.stream.synchronize();
  return own;
}

Panels HessianSource::panels(const PanelLayout& layout, const DeviceOrder& order, DType solver, std::int64_t room) {
  Panels result(team_, layout, input_.matrix ? solver : DType::f32);
  if (input_.matrix) {
    extract(result, order.host());
  } else if (input_.upload != nullptr) {
    accumulate_parked(result, order, room);
  } else if (resident_way(layout, team_.communicator.size(), team_.communicator.rank(), leaves_, largest_chunk_bytes(),
                          room)
                 .copies) {
    accumulate_copies(result, order);
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

comm::TreeSum HessianSource::make_tree(DType dtype, PanelShape shape) const {
  Backend& backend = team_.backend;
  return {{.allocate = [&backend](std::int64_t bytes) { return backend.allocate(bytes); },
           .add = [&backend](Stream& on, AnyView<2> sum, ConstAnyView<2> x) { backend.add(on, {.x = x, .y = sum}); },
           .copy = [&backend](Stream& on, AnyView<2> to,
                              ConstAnyView<2> from) { backend.convert(on, {.x = from, .y = to}); }},
          dtype,
          {shape.rows, shape.cols},
          leaves_};
}

void HessianSource::accumulate(Panels& panels, const DeviceOrder& order) {
  Stream& stream = team_.stream;
  const auto& layout = panels.layout();
  reorder_activations(order.index());
  PanelSum sum{.shape = {}, .tree = make_tree(panels.dtype(), layout.at(layout.count() - 1))};
  const auto where_they_lie = [&](const LeafInput& leaf, const UseChunk& use) { visit_chunks(leaf, nullptr, use); };
  const int ranks = team_.communicator.size();
  const int together = std::min(ranks, most_panels_together);
  comm::TreeReduction on_the_way(team_.communicator);
  for (int k = layout.count() - 1; k >= 0;) {
    comm::TreeReduction next(team_.communicator);
    const int end = std::max(-1, k - together);
    const auto what = fmt::format("Hessian panels {} to {} of {}", k, end + 1, layer_);
    for (; k > end; --k) {
      sum.shape = layout.at(k);
      sum.tree.restart({sum.shape.rows, sum.shape.cols});
      add_leaves({&sum, 1}, where_they_lie);
      next.add(sum.tree, panels.owner(k), panels.owns(k) ? panels.view(k) : AnyView<2>{}, what);
    }
    next.start(stream, what);
    on_the_way.finish(stream, sum.tree);
    on_the_way = std::move(next);
    if (ranks == 1) {
      on_the_way.finish(stream, sum.tree);
    }
  }
  on_the_way.finish(stream, sum.tree);
  reorder_activations(order.position());
}

void HessianSource::accumulate_parked(Panels& panels, const DeviceOrder& order, std::int64_t room) {
  Stream& stream = team_.stream;
  const auto& layout = panels.layout();
  const std::int64_t slot_bytes = largest_chunk_bytes();
  UploadRing ring(team_.backend, stream, *input_.upload, slot_bytes);
  const auto through_ring = [&](const LeafInput& leaf, const UseChunk& use) {
    visit_chunks(leaf, &ring, [&](AnyView<2> x) {
      team_.backend.gather_columns(stream, {.x = x, .index = order.index(), .y = x});
      use(x);
    });
  };
  const std::int64_t least_room = -team_.group.all_max(2 * slot_bytes - room, "room for sums of the Hessian");
  for (const auto& pass : panel_passes(layout, team_.communicator.size(), leaves_, least_room)) {
    make_panels(panels, pass, through_ring);
  }
}

void HessianSource::accumulate_copies(Panels& panels, const DeviceOrder& order) {
  const Buffer memory = team_.backend.allocate(largest_chunk_bytes());
  const auto through_copies = [&](const LeafInput& leaf, const UseChunk& use) {
    visit_chunks(leaf, nullptr, [&](AnyView<2> x) {
      const auto copy = memory.any_view<2>(x.dtype, x.shape);
      team_.backend.gather_columns(team_.stream, {.x = x, .index = order.index(), .y = copy});
      use(copy);
    });
  };
  make_panels(panels, {.first = panels.layout().count() - 1, .last = 0, .bytes = 0}, through_copies);
}

void HessianSource::make_panels(Panels& panels, const PanelPass& pass,
                                const std::function<void(const LeafInput& leaf, const UseChunk& use)>& visit) {
  const auto& layout = panels.layout();
  std::vector<PanelSum> sums;
  for (int k = pass.first; k >= pass.last; --k) {
    sums.push_back({.shape = layout.at(k), .tree = make_tree(panels.dtype(), layout.at(k))});
  }
  add_leaves(sums, visit);
  comm::TreeReduction reduction(team_.communicator);
  const auto what = fmt::format("Hessian panels {} to {} of {}", pass.first, pass.last, layer_);
  for (int k = pass.first; k >= pass.last; --k) {
    reduction.add(sums[static_cast<std::size_t>(pass.first - k)].tree, panels.owner(k),
                  panels.owns(k) ? panels.view(k) : AnyView<2>{}, what);
  }
  sums.clear();
  reduction.start(team_.stream, what);
  auto tree = make_tree(panels.dtype(), layout.at(pass.first));
  reduction.finish(team_.stream, tree);
}

void HessianSource::add_leaves(std::span<PanelSum> sums,
                               const std::function<void(const LeafInput& leaf, const UseChunk& use)>& visit) {
  for (const auto& leaf : input_.leaves) {
    bool accumulate = false;
    visit(leaf, [&](AnyView<2> x) {
      for (auto& sum : sums) {
        team_.backend.gram_panel(
            team_.stream,
            {.x = x.slice_cols(sum.shape.first, sum.shape.rows), .panel = sum.tree.next(), .accumulate = accumulate});
      }
      accumulate = true;
    });
    for (auto& sum : sums) {
      if (!accumulate) {
        const auto empty = sum.tree.next();
        team_.backend.fill_zero(team_.stream, empty.data, empty.bytes());
      }
      sum.tree.push(team_.stream, leaf.leaf);
    }
  }
}

void HessianSource::visit_chunks(const LeafInput& leaf, UploadRing* ring, const UseChunk& use) {
  for (const auto& chunk : leaf.chunks) {
    if (chunk.rows() == 0) {
      continue;
    }
    AnyView<2> x = chunk.parts.front();
    if (ring == nullptr) {
      use(x);
      continue;
    }
    std::vector<HostPart> parts;
    for (const auto& part : chunk.parts) {
      parts.push_back({.data = part.data, .bytes = part.bytes()});
    }
    use({ring->bring(parts), x.dtype, {chunk.rows(), columns_}});
    ring->release();
  }
}

std::int64_t HessianSource::largest_chunk_bytes() const {
  std::int64_t most = 0;
  for (const auto& leaf : input_.leaves) {
    for (const auto& chunk : leaf.chunks) {
      most = std::max(most, chunk.bytes());
    }
  }
  return most;
}

void HessianSource::reorder_activations(DeviceOrder::Map index) {
  for (const auto& leaf : input_.leaves) {
    visit_chunks(leaf, nullptr,
                 [&](AnyView<2> x) { team_.backend.gather_columns(team_.stream, {.x = x, .index = index, .y = x}); });
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
