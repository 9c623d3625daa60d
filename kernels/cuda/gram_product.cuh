#pragma once
/// @file XᵀX of 16-bit activations on Hopper's tensor cores.
#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

/// panel[r, c] <- (panel[r, c]) + Σ_t x[t, r] · x[t, c] for r >= c; elements above the diagonal are unspecified.
///
/// Products of 16-bit numbers are exact in fp32. Tensor cores add them to a sum by truncating what it cannot hold: a
/// bias that grows with the number of terms (5e-6 at 2,048), and a catastrophe for terms that share a sum with massive
/// ones. So a sum ends after 2,048 terms at the latest, and as soon as the largest |x| of the coming 64 tokens, in the
/// tile's columns of the panel, is less than a quarter of what the sum has seen; sums are added up in fp32 with rounding
/// to nearest. Where they end depends on m, w and x alone.
struct GramProduct {
  ConstAnyView<2> x;           ///< [tokens, m], f16 or bf16
  TensorView<float, 2> panel;  ///< [m, w], w <= m
  bool accumulate = false;
};

/// Whether this GPU has the instructions, and the operands the alignment.
bool allows_gram_product(const CudaStream& stream, const ConstAnyView<2>& x, const AnyView<2>& panel);

/// Uses the stream's scratch memory. @pre allows_gram_product(), at least one token and column
void gram_product(CudaStream& stream, const GramProduct& args);

}  // namespace gptqd::cuda
