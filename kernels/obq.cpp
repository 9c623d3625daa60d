#include "kernels/obq.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_bits;
using checks::expect_tensor;

void validate(const ObqArgs& args) {
  constexpr auto operation = "obq";
  expect_bits(args.bits, operation);
  const auto rows = args.weights.rows();
  const auto n = args.weights.cols();
  const auto groups = args.scales.cols();
  expect(n <= max_obq_columns, operation, [&] {
    return fmt::format("{} columns, expected at most {} (its cost grows with their cube); use gptq", n,
                       max_obq_columns);
  });
  expect_tensor(args.inverse, Shape<2>{n, n}, operation, "inverse");
  expect_tensor(args.weights, Shape<2>{rows, n}, {DType::f64, DType::f32}, operation, "weights");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.scales, Shape<2>{rows, groups}, operation, "scales");
  expect_tensor(args.zeros, Shape<2>{rows, groups}, operation, "zeros");
  expect_tensor(args.codes, Shape<2>{rows, n}, operation, "codes");
  expect_tensor(args.delta, Shape<2>{rows, n}, {args.weights.dtype}, operation, "delta");
}

}  // namespace gptqd
