#pragma once
/// @file Codes as bit streams, and weights from them.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// Row-packed codes: row r is an LSB-first bit stream of its codes in original column order, element i in bits
/// [bits·i, bits·i + bits): [rows, n·bits/32] words. The transpose of GPTQ's qweight, word for word (docs/formats.md).
struct PackRowsArgs {
  int bits = 4;
  ConstTensorView<std::uint8_t, 2> codes;     ///< [rows, n], columns in factor order
  ConstTensorView<std::int32_t, 1> position;  ///< [n]: position[i] = factor-order column of original column i
  TensorView<std::uint32_t, 2> packed;        ///< [rows, n·bits/32]; n·bits % 32 == 0
};
void validate(const PackRowsArgs& args);

/// y[c, r] = x[r, c]: packed rows into GPTQ's qweight, for files.
struct TransposeWordsArgs {
  ConstTensorView<std::uint32_t, 2> x;  ///< [rows, words]
  TensorView<std::uint32_t, 2> y;       ///< [words, rows]
};
void validate(const TransposeWordsArgs& args);

/// weight[r, i] = RN(scales[r, g]·(q − zeros[r, g])), g = group[i], rounded once to `stored` and held in weight's
/// dtype.
///
/// The one function by which packed codes become weights: in the run, at resume, in evaluation.
struct DequantizeArgs {
  int bits = 4;
  ConstTensorView<std::uint32_t, 2> packed;  ///< [rows, n·bits/32], row-packed, original order
  ConstTensorView<float, 2> scales;          ///< [rows, groups]
  ConstTensorView<std::uint8_t, 2> zeros;    ///< [rows, groups]
  ConstTensorView<std::int32_t, 1> group;    ///< [n], original order (the artifact's g_idx)
  DType stored = DType::f16;                 ///< the model's dtype: f16, bf16 or f32
  AnyView<2> weight;                         ///< [rows, n], compute dtype (f32 holds either half type exactly)
};
void validate(const DequantizeArgs& args);

}  // namespace gptqd
