#include "kernels/gram.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_tensor;

void validate(const ColumnSquareSumsArgs& args) {
  constexpr auto operation = "column_square_sums";
  expect_tensor(args.x, args.x.shape, {DType::f64, DType::f32, DType::f16, DType::bf16}, operation, "x");
  expect_tensor(args.sums, Shape<1>{args.x.cols()}, operation, "sums");
}

void validate(const GramPanelArgs& args) {
  constexpr auto operation = "gram_panel";
  expect_tensor(args.x, args.x.shape, {DType::f64, DType::f32, DType::f16, DType::bf16}, operation, "x");
  const auto w = args.panel.cols();
  expect(w <= args.x.cols(), operation,
         [&] { return fmt::format("the panel has {} columns, expected at most the {} of x", w, args.x.cols()); });
  expect_tensor(args.panel, Shape<2>{args.x.cols(), w}, {args.x.dtype == DType::f64 ? DType::f64 : DType::f32},
                operation, "panel");
}

void validate(const GetDiagonalArgs& args) {
  constexpr auto operation = "get_diagonal";
  expect_tensor(args.panel, args.panel.shape, {DType::f64, DType::f32}, operation, "panel");
  expect(args.panel.cols() <= args.panel.rows(), operation, [&] {
    return fmt::format("the panel is {}, expected no more columns than rows", to_string(args.panel.shape));
  });
  expect_tensor(args.diagonal, Shape<1>{args.panel.cols()}, operation, "diagonal");
}

void validate(const SetDiagonalArgs& args) {
  constexpr auto operation = "set_diagonal";
  expect_tensor(args.panel, args.panel.shape, {DType::f64, DType::f32}, operation, "panel");
  expect(args.panel.cols() <= args.panel.rows(), operation, [&] {
    return fmt::format("the panel is {}, expected no more columns than rows", to_string(args.panel.shape));
  });
  expect_tensor(args.diagonal, Shape<1>{args.panel.cols()}, operation, "diagonal");
}

void validate(const GatherGroupBlocksArgs& args) {
  constexpr auto operation = "gather_group_blocks";
  const auto n = args.group.rows();
  expect(args.first >= 0 && args.first + args.panel.cols() <= n, operation, [&] {
    return fmt::format("columns [{}, {}) of a panel, expected them in [0, {}), the columns that have a group",
                       args.first, args.first + args.panel.cols(), n);
  });
  expect_tensor(args.panel, Shape<2>{n - args.first, args.panel.cols()}, {DType::f64, DType::f32}, operation, "panel");
  expect_tensor(args.group, Shape<1>{n}, operation, "group");
  expect_tensor(args.member, Shape<1>{n}, operation, "member");
  const auto size = args.blocks.shape[1];
  expect_tensor(args.blocks, Shape<3>{args.blocks.shape[0], size, size}, operation, "blocks");
}

}  // namespace gptqd
