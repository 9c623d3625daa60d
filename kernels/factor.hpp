#pragma once
/// @file Right-looking Cholesky factorization by column panels: H = L Lᵀ in factor order (docs/numerics.md).
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// Factors one panel in place: its first w rows are the diagonal block A11 = L11 L11ᵀ (lower), then L21 = A21 L11⁻ᵀ.
///
/// Reads the lower part of the diagonal block only; its strictly upper part becomes zero. Not positive definite, or not
/// finite: status = the 1-based leading minor of the diagonal block; the panel's contents are then unspecified (and the
/// caller starts again from its copy of H).
struct FactorPanelArgs {
  AnyView<2> panel;                    ///< [m, w], f32 or f64, w <= m
  TensorView<std::int32_t, 1> status;  ///< [1], 0 when it succeeded
};
void validate(const FactorPanelArgs& args);

/// target <- target − rows · topᵀ: the trailing update of one panel by one factored panel.
///
/// `rows` are the factored panel's rows from the target's first column on, `top` the first w2 of them. The strictly
/// upper part of the target's first w2 rows is unspecified.
struct UpdatePanelArgs {
  ConstAnyView<2> rows;  ///< [m2, w1], f32 or f64
  ConstAnyView<2> top;   ///< [w2, w1], the first w2 rows of `rows`
  AnyView<2> target;     ///< [m2, w2]
};
void validate(const UpdatePanelArgs& args);

}  // namespace gptqd
