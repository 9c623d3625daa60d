#include "kernels/layer_norm.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const LayerNormArgs& args) {
  constexpr auto operation = "layer_norm";
  checks::expect_tensor(args.x, args.x.shape, {DType::f32, DType::f16, DType::bf16}, operation, "x");
  checks::expect_tensor(args.y, args.x.shape, {args.x.dtype}, operation, "y");
  checks::expect_tensor(args.weight, Shape<1>{args.x.cols()}, operation, "weight");
  checks::expect_tensor(args.bias, Shape<1>{args.x.cols()}, operation, "bias");
  checks::expect(args.epsilon >= 0.0f, operation,
                 [&] { return fmt::format("epsilon = {}, expected a number that is not negative", args.epsilon); });
  if (args.y.data != args.x.data || args.y.stride != args.x.stride) {
    checks::expect_disjoint(args.y, "y", args.x, "x", operation);
  }
}

}  // namespace gptqd
