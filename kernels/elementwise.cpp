#include "kernels/elementwise.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const AddArgs& args) {
  constexpr auto operation = "add";
  checks::expect_tensor(args.x, args.x.shape, {DType::f64, DType::f32}, operation, "x");
  checks::expect_tensor(args.y, args.x.shape, {args.x.dtype}, operation, "y");
  if (args.y.data != args.x.data || args.y.stride != args.x.stride) {
    checks::expect_disjoint(args.y, "y", args.x, "x", operation);
  }
}

void validate(const ConvertArgs& args) {
  constexpr auto operation = "convert";
  const std::initializer_list<DType> floating{DType::f64, DType::f32, DType::f16, DType::bf16};
  checks::expect_tensor(args.x, args.x.shape, floating, operation, "x");
  checks::expect_tensor(args.y, args.x.shape, floating, operation, "y");
  checks::expect_disjoint(args.y, "y", args.x, "x", operation);
}

void validate(const GatherColumnsArgs& args) {
  constexpr auto operation = "gather_columns";
  checks::expect_tensor(args.x, args.x.shape, {DType::f64, DType::f32, DType::f16, DType::bf16}, operation, "x");
  checks::expect_tensor(args.index, args.index.shape, operation, "index");
  const Shape<2> gathered{args.x.rows(), args.index.rows()};
  if (args.x.dtype == DType::f32) {
    checks::expect_tensor(args.y, gathered, {DType::f32, DType::f64}, operation, "y");
  } else {
    checks::expect_tensor(args.y, gathered, {args.x.dtype}, operation, "y");
  }
  if (!args.in_place() || args.y.shape != args.x.shape) {
    checks::expect_disjoint(args.y, "y", args.x, "x", operation);
  }
}

}  // namespace gptqd
