#pragma once
/// @file Products of fp32 matrices on Hopper's tensor cores, as good as in fp32 arithmetic.
///
/// A number of 24 significant bits is, but for the last two, the sum of two binary16 numbers of 11: x = high + low. Of
/// the four products of two such sums the three that matter are taken; products of binary16 numbers are exact in the
/// fp32 they are added in. (Ozaki's scheme; TF32x3 has the same bits at half the speed.) Each column of an operand is
/// scaled by a power of two that fills binary16's range: what is 2^-18 of the column's largest number or more keeps its
/// 22 bits, the rest an absolute error of 2^-40 of that.
#include <cstdint>

#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// An fp32 matrix [terms, cols] in such parts.
struct SplitMatrix {
  static constexpr std::int64_t stage_terms = 32;
  std::int64_t part_rows = 0;    ///< terms, and rows of zeros up to a multiple of stage_terms
  ConstAnyView<2> parts;         ///< f16 [2 · part_rows, cols]: the high parts, then the low ones
  const float* units = nullptr;  ///< [cols] what 1 stands for in each column

  SplitMatrix slice_cols(std::int64_t first, std::int64_t count) const {
    return {.part_rows = part_rows, .parts = parts.slice_cols(first, count), .units = units + first};
  }
};

/// Where one is made: what writes parts itself fills them all, also the rows of zeros.
struct SplitMemory {
  std::int64_t part_rows = 0;
  AnyView<2> parts;
  float* units = nullptr;
  float* peaks = nullptr;  ///< [cols] scratch: the largest |number| of each column

  SplitMatrix matrix() const { return {.part_rows = part_rows, .parts = parts, .units = units}; }
};
/// The same as kernels see it.
struct SplitParts {
  Rows<__half> parts;
  std::int64_t part_rows = 0;
  float* units = nullptr;
  float* peaks = nullptr;

  SplitParts() = default;
  explicit SplitParts(const SplitMemory& memory)
      : parts(memory.parts), part_rows(memory.part_rows), units(memory.units), peaks(memory.peaks) {}
  /// `value` in the column's units.
  __device__ void store(std::int64_t term, std::int64_t col, float value) const {
    const __half high = __float2half_rn(value);
    parts.row(term)[col] = high;
    parts.row(part_rows + term)[col] = __float2half_rn(value - __half2float(high));
  }
};

std::int64_t split_bytes(std::int64_t terms, std::int64_t cols);
/// @param memory  split_bytes(terms, cols), 256-byte aligned
SplitMemory split_memory(std::int64_t terms, std::int64_t cols, void* memory);

/// @param matrix  [terms, cols], or [cols, terms] if `transposed`
SplitMatrix split(CudaStream& stream, const ConstTensorView<float, 2>& matrix, bool transposed, void* memory);

/// result[r, c] <- result[r, c] + sign · Σ_t left[t, r] · right[right_first + t, c] over the left operand's terms.
///
/// Tensor cores add products to a sum by truncating what it cannot hold: a bias that grows with the number of terms.
/// Here they add up 128 terms at most; these sums are added in fp32 with rounding to nearest.
///
/// Terms of the right operand that meet the left one's rows of zeros must be finite.
struct SplitProduct {
  SplitMatrix left;
  SplitMatrix right;
  std::int64_t right_first = 0;
  TensorView<float, 2> result;  ///< [m, n]
  float sign = 1;
  /// Only elements with r >= c are asked for; others are unspecified.
  bool lower = false;
  /// False: an element's bits do not depend on the extents of the result, nor on its place there. True: terms are cut
  /// where it keeps the whole GPU busy, which depends on m and n.
  bool cut_terms = false;
};
/// Uses the stream's scratch memory where it cuts terms. @pre allows_split_product(), at least one row and column
void split_product(CudaStream& stream, const SplitProduct& args);
/// Whether this GPU has the instructions, and the result is f32 and aligned as they want it.
bool allows_split_product(const CudaStream& stream, const AnyView<2>& result);

}  // namespace gptqd::cuda
