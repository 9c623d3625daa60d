#include "kernels/attention.hpp"

#include <limits>

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const AttentionArgs& args) {
  constexpr auto operation = "attention";
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  checks::expect(args.heads > 0 && args.kv_heads > 0 && args.head_dim > 0 && args.tokens_per_sample > 0 &&
                     args.heads <= most && args.kv_heads <= most && args.head_dim <= most,
                 operation, [&] {
                   return fmt::format(
                       "heads = {}, kv_heads = {}, head_dim = {}, tokens_per_sample = {}, expected positive numbers",
                       args.heads, args.kv_heads, args.head_dim, args.tokens_per_sample);
                 });
  checks::expect(args.heads % args.kv_heads == 0, operation, [&] {
    return fmt::format("{} heads share {} kv_heads, expected a multiple", args.heads, args.kv_heads);
  });
  const std::int64_t rows = args.q.rows();
  checks::expect(rows % args.tokens_per_sample == 0, operation, [&] {
    return fmt::format("q is {}, expected rows in whole samples of {} tokens", to_string(args.q.shape),
                       args.tokens_per_sample);
  });
  const std::int64_t stride = args.stride_of_heads();
  checks::expect(stride >= args.head_dim && stride <= most, operation, [&] {
    return fmt::format("head_stride = {}, expected at least head_dim = {}", stride, args.head_dim);
  });
  checks::expect(args.window >= 0, operation,
                 [&] { return fmt::format("window = {}, expected 0 or a number of tokens", args.window); });
  if (args.alibi_slopes) {
    checks::expect_tensor(*args.alibi_slopes, Shape<1>{args.heads}, operation, "alibi_slopes");
  }
  const Shape<2> query{rows, (args.heads - 1) * stride + args.head_dim};
  const Shape<2> key{rows, (args.kv_heads - 1) * stride + args.head_dim};
  checks::expect_tensor(args.q, query, {DType::f32, DType::f16, DType::bf16}, operation, "q");
  checks::expect_tensor(args.k, key, {args.q.dtype}, operation, "k");
  checks::expect_tensor(args.v, key, {args.q.dtype}, operation, "v");
  checks::expect_tensor(args.out, Shape<2>{rows, args.heads * args.head_dim}, {args.q.dtype}, operation, "out");
  checks::expect_disjoint(args.out, "out", args.q, "q", operation);
  checks::expect_disjoint(args.out, "out", args.k, "k", operation);
  checks::expect_disjoint(args.out, "out", args.v, "v", operation);
}

}  // namespace gptqd
