#pragma once
/// @file Causal multi-head attention over whole samples.
#include <optional>

#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// out[t, h] = Σ_j softmax_j(scale · q[t, h]·k[j, h'] + slope[h]·(j − t)) v[j, h'] over the positions j <= t of t's own
/// sample, of those the last `window` where there is one; h' = h / (heads / kv_heads); slope 0 without ALiBi
/// (arXiv:2108.12409). No [S, S] matrix of a whole sample is kept: memory is O(tile · S) a thread.
///
/// Heads of q, k and v are `head_stride` columns apart, so that heads of q, k and v may alternate in one buffer.
struct AttentionArgs {
  ConstAnyView<2> q;  ///< [samples · tokens_per_sample, (heads − 1) · head_stride + head_dim], compute dtype
  ConstAnyView<2> k;  ///< [same rows, (kv_heads − 1) · head_stride + head_dim]
  ConstAnyView<2> v;  ///< as k
  AnyView<2> out;     ///< [same rows, heads · head_dim]; must not overlap q, k, v
  std::int64_t tokens_per_sample = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t head_stride = 0;  ///< 0: head_dim
  float scale = 1.0f;
  std::optional<ConstTensorView<float, 1>> alibi_slopes;  ///< [heads]
  std::int64_t window = 0;                                ///< a token sees itself and window − 1 before it; 0: all

  std::int64_t stride_of_heads() const { return head_stride == 0 ? head_dim : head_stride; }
};
void validate(const AttentionArgs& args);

}  // namespace gptqd
