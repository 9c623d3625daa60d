#include "kernels/factor.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

using checks::expect;
using checks::expect_tensor;

void validate(const FactorPanelArgs& args) {
  constexpr auto operation = "factor_panel";
  expect_tensor(args.panel, args.panel.shape, {DType::f64, DType::f32}, operation, "panel");
  expect(args.panel.cols() <= args.panel.rows(), operation, [&] {
    return fmt::format("the panel is {}, expected no more columns than rows", to_string(args.panel.shape));
  });
  expect_tensor(args.status, Shape<1>{1}, operation, "status");
}

void validate(const UpdatePanelArgs& args) {
  constexpr auto operation = "update_panel";
  expect_tensor(args.rows, args.rows.shape, {DType::f64, DType::f32}, operation, "rows");
  const auto w = args.target.cols();
  expect(w <= args.rows.rows(), operation, [&] {
    return fmt::format("the target has {} columns, expected at most the {} rows of the factored panel", w,
                       args.rows.rows());
  });
  expect_tensor(args.top, Shape<2>{w, args.rows.cols()}, {args.rows.dtype}, operation, "top");
  expect_tensor(args.target, Shape<2>{args.rows.rows(), w}, {args.rows.dtype}, operation, "target");
}

}  // namespace gptqd
