#include "kernels/grid.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_bits;
using checks::expect_tensor;

void validate(const FindGridsArgs& args) {
  constexpr auto operation = "find_grids";
  expect_bits(args.spec.bits, operation);
  const auto rows = args.weights.rows();
  const auto n = args.weights.cols();
  const auto groups = args.scales.cols();
  expect_tensor(args.weights, Shape<2>{rows, n}, {DType::f64, DType::f32}, operation, "weights");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.member, Shape<1>{args.member.rows() == 0 ? 0 : n}, operation, "member");
  expect_tensor(args.scales, Shape<2>{rows, groups}, operation, "scales");
  expect_tensor(args.zeros, Shape<2>{rows, groups}, operation, "zeros");
  if (args.spec.clip == Clip::hessian) {
    expect_tensor(args.member, Shape<1>{n}, operation, "member");
    const auto size = args.blocks.shape[1];
    expect_tensor(args.blocks, Shape<3>{groups, size, size}, operation, "blocks");
  }
}

void validate(const RoundToGridsArgs& args) {
  constexpr auto operation = "round_to_grids";
  expect_bits(args.bits, operation);
  const auto rows = args.weights.rows();
  const auto n = args.weights.cols();
  const auto groups = args.scales.cols();
  expect_tensor(args.weights, Shape<2>{rows, n}, {DType::f64, DType::f32}, operation, "weights");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.scales, Shape<2>{rows, groups}, operation, "scales");
  expect_tensor(args.zeros, Shape<2>{rows, groups}, operation, "zeros");
  expect_tensor(args.codes, Shape<2>{rows, n}, operation, "codes");
  expect_tensor(args.delta, Shape<2>{rows, n}, {args.weights.dtype}, operation, "delta");
}

}  // namespace gptqd
