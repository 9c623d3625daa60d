#include "kernels/rotary.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const RotaryArgs& args) {
  constexpr auto operation = "rotary";
  checks::expect_tensor(args.x, args.x.shape, {DType::f32, DType::f16, DType::bf16}, operation, "x");
  checks::expect(args.tokens_per_sample > 0 && args.head_dim > 0 && args.x.rows() % args.tokens_per_sample == 0 &&
                     args.x.cols() % args.head_dim == 0,
                 operation, [&] {
                   return fmt::format("x is {}, expected rows in samples of {} tokens, columns in heads of {}",
                                      to_string(args.x.shape), args.tokens_per_sample, args.head_dim);
                 });
  checks::expect_tensor(args.cos, args.cos.shape, operation, "cos");
  checks::expect_tensor(args.sin, args.cos.shape, operation, "sin");
  checks::expect(args.cos.rows() >= args.tokens_per_sample && 2 * args.cos.cols() <= args.head_dim, operation, [&] {
    return fmt::format("cos is {}, expected at least {} positions and at most {} columns", to_string(args.cos.shape),
                       args.tokens_per_sample, args.head_dim / 2);
  });
}

}  // namespace gptqd
