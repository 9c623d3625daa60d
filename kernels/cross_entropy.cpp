#include "kernels/cross_entropy.hpp"

#include "kernels/checks.hpp"

namespace gptqd {

void validate(const CrossEntropyArgs& args) {
  constexpr auto operation = "cross_entropy";
  checks::expect_tensor(args.x, args.x.shape, {DType::f32, DType::f16, DType::bf16}, operation, "x");
  checks::expect_tensor(args.head, Shape<2>{args.head.rows(), args.x.cols()}, {args.x.dtype}, operation, "head");
  checks::expect(args.head.rows() > 0, operation, [&] {
    return fmt::format("head is {}, expected a vocabulary that is not empty", to_string(args.head.shape));
  });
  checks::expect_tensor(args.targets, Shape<1>{args.x.rows()}, operation, "targets");
  checks::expect_tensor(args.nll, Shape<1>{args.x.rows()}, operation, "nll");
}

}  // namespace gptqd
