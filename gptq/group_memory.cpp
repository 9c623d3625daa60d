#include "gptq/group_memory.hpp"

#include <algorithm>

#include "gptq/row_solver.hpp"

namespace gptqd::gptq {

std::int64_t GroupMemory::solve() const {
  const std::int64_t beside_hessian = hessian + factor + 2 * rows;
  const std::int64_t behind = factor + (has_baseline ? 3 : 2) * rows;
  return std::max(beside_hessian, behind) + codes + 2 * results + blocks;
}

GroupMemory group_memory(const GroupShape& shape, const QuantSpec& spec, const Partition& partition, bool calibrated) {
  const auto layout = panel_layout(shape.columns, spec, partition);
  const std::int64_t n = shape.columns;
  const std::int64_t own_rows = rows_of(shape.rank, shape.ranks, shape.rows, partition.row_tile).count;
  const bool whole = shape.ranks == 1 || n <= partition.whole_columns;
  std::int64_t own = 0;
  std::int64_t largest = 0;
  for (int k = 0; k < layout.count(); ++k) {
    const auto panel = layout.at(k);
    const std::int64_t entries = panel.rows * panel.cols;
    own += whole || k % shape.ranks == shape.rank ? entries : 0;
    largest = std::max(largest, entries);
  }
  const std::int64_t groups = spec.groups(n);
  const std::int64_t solver = size_of(spec.solver);
  GroupMemory memory{.rows = own_rows * n * solver,
                     .codes = own_rows * n,
                     .results = shape.rows * (n * spec.bits / 8 + groups * (size_of(DType::f32) + 1)),
                     .has_baseline = calibrated && spec.method != Method::rtn};
  if (calibrated) {
    memory.hessian = own * size_of(DType::f32);
    memory.factor = (own + (whole ? 0 : 2 * largest)) * solver;
    memory.blocks = spec.clip == Clip::hessian ? n * spec.group_columns(n) * size_of(DType::f32) : 0;
  }
  return memory;
}

}  // namespace gptqd::gptq
