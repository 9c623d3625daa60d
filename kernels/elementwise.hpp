#pragma once
/// @file Elementwise operations and column gathers.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y <- y + x, IEEE addition in the dtype of y.
struct AddArgs {
  ConstAnyView<2> x;  ///< [rows, cols], f32 or f64
  AnyView<2> y;       ///< [rows, cols], same dtype
};
void validate(const AddArgs& args);

/// y <- x, rounded to nearest even where the target is narrower. Between f64, f32, f16, bf16.
struct ConvertArgs {
  ConstAnyView<2> x;  ///< [rows, cols]
  AnyView<2> y;       ///< [rows, cols]
};
void validate(const ConvertArgs& args);

/// y[r, c] = x[r, index[c]]: puts columns into factor order. Converts f32 -> f64 where y is f64. In place where y is x
/// itself: each row is read before it is written.
struct GatherColumnsArgs {
  ConstAnyView<2> x;                       ///< [rows, n], f32 (or compute dtype)
  ConstTensorView<std::int32_t, 1> index;  ///< [m], each in [0, n)
  AnyView<2> y;                            ///< [rows, m]; x itself, or not overlapping it

  bool in_place() const { return y.data == x.data && y.stride == x.stride && y.dtype == x.dtype; }
};
void validate(const GatherColumnsArgs& args);

}  // namespace gptqd
