#include "kernels/gated_activation.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const GatedActivationArgs& args) {
  constexpr auto operation = "gated_activation";
  checks::expect_tensor(args.gate, args.gate.shape, {DType::f32, DType::f16, DType::bf16}, operation, "gate");
  checks::expect_tensor(args.up, args.gate.shape, {args.gate.dtype}, operation, "up");
  checks::expect_tensor(args.y, args.gate.shape, {args.gate.dtype}, operation, "y");
  checks::expect_disjoint(args.y, "y", args.gate, "gate", operation);
  checks::expect_disjoint(args.y, "y", args.up, "up", operation);
}

}  // namespace gptqd
