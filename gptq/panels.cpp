#include "gptq/panels.hpp"

#include <algorithm>
#include <cstring>
#include <span>

namespace gptqd::gptq {

std::int64_t solve_block(const QuantSpec& spec) {
  constexpr std::int64_t block = 128;
  if (!spec.dynamic_grids()) {
    return block;
  }
  return spec.group_size <= block ? block / spec.group_size * spec.group_size : spec.group_size;
}

PanelLayout::PanelLayout(std::int64_t columns, std::int64_t width) : columns_(columns), width_(width) {
  require(columns > 0 && width > 0, "panel layout: columns and width must be positive");
}

PanelShape PanelLayout::at(int k) const {
  require(k >= 0 && k < count(), "panel layout: no such panel");
  const std::int64_t end = columns_ - k * width_;
  const std::int64_t first = std::max<std::int64_t>(0, end - width_);
  return {.first = first, .cols = end - first, .rows = columns_ - first};
}

PanelLayout panel_layout(std::int64_t columns, const QuantSpec& spec, const Partition& partition) {
  const std::int64_t block = solve_block(spec);
  return {columns, (partition.panel_columns + block - 1) / block * block};
}

Panels::Panels(const Team& team, const PanelLayout& layout, DType dtype)
    : Panels(team, layout, dtype, team.communicator.size() == 1) {}

Panels::Panels(const Team& team, const Panels& like, DType dtype) : Panels(team, like.layout_, dtype, like.whole_) {}

Panels::Panels(const Team& team, const PanelLayout& layout, DType dtype, bool whole)
    : layout_(layout),
      dtype_(dtype),
      rank_(team.communicator.rank()),
      size_(team.communicator.size()),
      whole_(whole),
      own_(static_cast<std::size_t>(layout.count())) {
  for (int k = 0; k < count(); ++k) {
    if (owns(k)) {
      own_[static_cast<std::size_t>(k)] = team.backend.allocate(bytes(k));
    }
  }
}

void Panels::make_whole(Team& team, std::string_view what) {
  if (whole_) {
    return;
  }
  std::vector<comm::Pending> pending;
  for (int k = 0; k < count(); ++k) {
    auto& panel = own_[static_cast<std::size_t>(k)];
    if (!owns(k)) {
      panel = team.backend.allocate(bytes(k));
    }
    pending.push_back(team.communicator.broadcast(team.stream, panel.data(), bytes(k), owner(k), what));
  }
  for (auto& transfer : pending) {
    transfer.wait();
  }
  whole_ = true;
}

AnyView<2> Panels::view(int k) const {
  require(owns(k), "panels: this panel is another rank's");
  const auto shape = layout_.at(k);
  return own_[static_cast<std::size_t>(k)].any_view<2>(dtype_, {shape.rows, shape.cols});
}

std::int64_t Panels::bytes(int k) const {
  const auto shape = layout_.at(k);
  return shape.rows * shape.cols * size_of(dtype_);
}

std::int64_t Panels::largest_bytes() const { return std::max(bytes(count() - 1), bytes(std::max(0, count() - 2))); }

PanelExchange::PanelExchange(Team& team, const Panels& panels, std::string_view what)
    : team_(team), panels_(panels), what_(what) {
  if (!panels.is_whole()) {
    for (auto& slot : slots_) {
      slot = team.backend.allocate(panels.largest_bytes());
    }
  }
}

void PanelExchange::start(int k) {
  if (panels_.is_whole()) {
    return;
  }
  const auto slot = static_cast<std::size_t>(k % 2);
  pending_[slot].wait();
  void* data = panels_.owns(k) ? panels_.view(k).data : slots_[slot].data();
  pending_[slot] = team_.communicator.broadcast(team_.stream, data, panels_.bytes(k), panels_.owner(k), what_);
}

ConstAnyView<2> PanelExchange::finish(int k) {
  if (panels_.owns(k)) {
    return panels_.view(k);
  }
  const auto slot = static_cast<std::size_t>(k % 2);
  pending_[slot].wait();
  const auto shape = panels_.layout().at(k);
  return slots_[slot].any_view<2>(panels_.dtype(), {shape.rows, shape.cols});
}

void PanelExchange::drain() {
  for (auto& pending : pending_) {
    pending.wait();
  }
}

std::vector<double> gather_diagonal(Team& team, const Panels& panels) {
  const std::int64_t n = panels.layout().columns();
  Buffer device = team.backend.allocate(n * size_of(DType::f64));
  const auto diagonal = device.view<double, 1>({n});
  std::vector<double> own(static_cast<std::size_t>(n), 0.0);
  for (int k = 0; k < panels.count(); ++k) {
    if (panels.owns(k)) {
      const auto shape = panels.layout().at(k);
      const auto part = diagonal.slice_rows(shape.first, shape.cols);
      team.backend.get_diagonal(team.stream, {.panel = panels.view(k), .diagonal = part});
      team.backend.copy_to_host(team.stream, own.data() + shape.first, part.data, shape.cols * size_of(DType::f64));
    }
  }
  team.stream.synchronize();
  if (panels.is_whole()) {
    return own;
  }
  const auto parts = team.group.all_gather_bytes(std::as_bytes(std::span(own)), "diagonal of the Hessian");
  std::vector<double> all(own.size());
  for (int k = 0; k < panels.count(); ++k) {
    const auto shape = panels.layout().at(k);
    const auto& part = parts[static_cast<std::size_t>(panels.owner(k))];
    const auto offset = static_cast<std::size_t>(shape.first) * sizeof(double);
    const auto bytes = static_cast<std::size_t>(shape.cols) * sizeof(double);
    require(offset + bytes <= part.size(), "diagonal of the Hessian: a rank sent too little");
    std::memcpy(all.data() + shape.first, part.data() + offset, bytes);
  }
  return all;
}

}  // namespace gptqd::gptq
