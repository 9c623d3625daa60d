#include "kernels/rms_norm.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const RmsNormArgs& args) {
  constexpr auto operation = "rms_norm";
  checks::expect_tensor(args.x, args.x.shape, {DType::f32, DType::f16, DType::bf16}, operation, "x");
  checks::expect_tensor(args.y, args.x.shape, {args.x.dtype}, operation, "y");
  checks::expect_tensor(args.weight, args.weight.shape, operation, "weight");
  checks::expect(args.weight.rows() > 0 && args.x.cols() % args.weight.rows() == 0, operation, [&] {
    return fmt::format("x is {}, expected runs of {} columns, the size of weight", to_string(args.x.shape),
                       args.weight.rows());
  });
  checks::expect(args.epsilon >= 0.0f, operation,
                 [&] { return fmt::format("epsilon = {}, expected a number that is not negative", args.epsilon); });
  if (args.y.data != args.x.data || args.y.stride != args.x.stride) {
    checks::expect_disjoint(args.y, "y", args.x, "x", operation);
  }
}

}  // namespace gptqd
