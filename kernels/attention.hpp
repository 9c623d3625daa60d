#pragma once
/// @file Causal multi-head attention over whole samples.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// out[t, h] = Σ_j softmax_j(scale · q[t, h]·k[j, h']) v[j, h'] over the positions j <= t of t's own sample,
/// h' = h / (heads / kv_heads). No [S, S] matrix of a whole sample is kept: memory is O(tile · S) a thread.
struct AttentionArgs {
  ConstAnyView<2> q;  ///< [samples · tokens_per_sample, heads · head_dim], compute dtype, row stride free
  ConstAnyView<2> k;  ///< [same rows, kv_heads · head_dim]
  ConstAnyView<2> v;  ///< [same rows, kv_heads · head_dim]
  AnyView<2> out;     ///< [same rows, heads · head_dim]; must not overlap q, k, v
  std::int64_t tokens_per_sample = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0f;
};
void validate(const AttentionArgs& args);

}  // namespace gptqd
