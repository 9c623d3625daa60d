#include "kernels/solve.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_bits;
using checks::expect_tensor;

namespace {

/// A panel of the factor whose columns lie in [0, n).
void expect_factor(const ConstAnyView<2>& factor, std::int64_t first, std::int64_t n, std::string_view operation) {
  const auto w = factor.cols();
  expect(first >= 0 && w >= 1 && first + w <= n, operation, [&] {
    return fmt::format("columns [{}, {}) of the factor, expected at least one of [0, {})", first, first + w, n);
  });
  expect_tensor(factor, Shape<2>{n - first, w}, {DType::f64, DType::f32}, operation, "factor");
}

}  // namespace

void validate(const SolvePanelArgs& args) {
  constexpr auto operation = "solve_panel";
  expect_bits(args.grid.bits, operation);
  const auto rows = args.weights.rows();
  const auto n = args.weights.cols();
  const auto groups = args.scales.cols();
  const auto w = args.factor.cols();
  expect_factor(args.factor, args.first, n, operation);
  expect(args.block >= 1 && args.row_tile >= 1, operation, [&] {
    return fmt::format("block = {}, row_tile = {}, expected both to be positive", args.block, args.row_tile);
  });
  expect((n - args.first - w) % args.block == 0 && (args.first == 0 || w % args.block == 0), operation, [&] {
    return fmt::format(
        "the panel holds columns [{}, {}) of {}, expected whole blocks of {} counted from the last column (the lowest "
        "panel alone may end with less)",
        args.first, args.first + w, n, args.block);
  });
  const auto dtype = args.factor.dtype;
  expect_tensor(args.weights, Shape<2>{rows, n}, {dtype}, operation, "weights");
  expect_tensor(args.delta, Shape<2>{rows, n}, {dtype}, operation, "delta");
  expect_tensor(args.codes, Shape<2>{rows, n}, operation, "codes");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.member, Shape<1>{n}, operation, "member");
  expect_tensor(args.scales, Shape<2>{rows, groups}, operation, "scales");
  expect_tensor(args.zeros, Shape<2>{rows, groups}, operation, "zeros");
  expect_tensor(args.row_loss, Shape<1>{rows}, operation, "row_loss");
  if (args.dynamic_grids && args.grid.clip == Clip::hessian) {
    const auto size = args.blocks.shape[1];
    expect_tensor(args.blocks, Shape<3>{groups, size, size}, operation, "blocks");
  }
}

void validate(const WeightedNormsArgs& args) {
  constexpr auto operation = "weighted_norms";
  const auto n = args.extra.rows();
  expect_factor(args.factor, args.first, n, operation);
  expect(args.row_tile >= 1, operation,
         [&] { return fmt::format("row_tile = {}, expected a positive one", args.row_tile); });
  expect_tensor(args.extra, Shape<1>{n}, operation, "extra");
  for (const auto& [delta, norms] : args.rows) {
    expect_tensor(delta, Shape<2>{delta.rows(), n}, {args.factor.dtype}, operation, "delta");
    expect_tensor(norms, Shape<1>{delta.rows()}, operation, "norms");
  }
}

}  // namespace gptqd
