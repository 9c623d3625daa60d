#include "kernels/linear.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const LinearArgs& args) {
  constexpr auto operation = "linear";
  const std::initializer_list<DType> compute{DType::f32, DType::f16, DType::bf16};
  checks::expect_tensor(args.x, args.x.shape, compute, operation, "x");
  checks::expect_tensor(args.weight, Shape<2>{args.weight.rows(), args.x.cols()}, {args.x.dtype}, operation, "weight");
  checks::expect_tensor(args.y, Shape<2>{args.x.rows(), args.weight.rows()}, {args.x.dtype}, operation, "y");
  if (args.bias) {
    checks::expect_tensor(*args.bias, Shape<1>{args.weight.rows()}, operation, "bias");
  }
  checks::expect(!args.accumulate || args.activation == Activation::none, operation,
                 [] { return std::string("an activation together with accumulate, expected one of them at most"); });
  checks::expect_disjoint(args.y, "y", args.x, "x", operation);
  checks::expect_disjoint(args.y, "y", args.weight, "weight", operation);
}

}  // namespace gptqd
