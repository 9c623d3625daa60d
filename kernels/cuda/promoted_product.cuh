#pragma once
/// @file Products of 16-bit matrices on Hopper's tensor cores with sums as good as those of fp32 arithmetic.
#include <cstdint>

#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

/// Where a run of terms lies: rows [a, a + rows) of the left operand meet rows [b, b + rows) of the right one.
struct TermRun {
  std::int64_t a = 0;
  std::int64_t b = 0;
};

/// result[r, c] <- (result[r, c]) + sign · Σ over the runs, Σ_t left[a + t, r] · right[b + t, c].
///
/// Tensor cores add products to a sum by truncating what it cannot hold: a bias that grows with the number of terms,
/// and a catastrophe for terms that share a sum with massive ones. Here they add up 128 terms at most; these
/// sums are added in fp32 with rounding to nearest.
///
/// Terms lie along rows: for XᵀX both operands are X. Row-major, any strides that allows_promoted_product() takes.
struct PromotedProduct {
  static constexpr int sum_terms = 128;
  static constexpr int run_unit = 64;
  static constexpr int most_runs = 6;
  ConstAnyView<2> left;   ///< [., m], f16 or bf16
  ConstAnyView<2> right;  ///< [., n], same dtype
  std::int64_t run_rows = 0;
  int runs = 1;
  TermRun run[most_runs];       ///< with more than one, run_rows is a multiple of run_unit
  TensorView<float, 2> result;  ///< [m, n]
  float sign = 1;
  bool accumulate = false;
  /// Only elements with r >= c are asked for; others are unspecified.
  bool lower = false;
  /// False: an element's bits do not depend on the extents of the result, nor on its place there. True: terms are cut
  /// where it keeps the whole GPU busy, which depends on m and n.
  bool cut_terms = false;
};

/// Whether this GPU has the instructions, and the operands the alignment.
bool allows_promoted_product(const CudaStream& stream, const ConstAnyView<2>& left, const ConstAnyView<2>& right,
                             const AnyView<2>& result);

/// Uses the stream's scratch memory where it cuts terms.
/// @pre allows_promoted_product(), at least one row and column, run_rows > 0
void promoted_product(CudaStream& stream, const PromotedProduct& args);

/// An fp32 matrix as the sum of three bf16 ones, which hold its 24 significant bits: parts one below the other, each
/// with rows of zeros up to a multiple of run_unit.
struct SplitMatrix {
  static constexpr int count = 3;
  std::int64_t part_rows = 0;
  ConstAnyView<2> parts;  ///< [count · part_rows, cols]
};
std::int64_t split_bytes(std::int64_t terms, std::int64_t cols);
/// @param matrix  [terms, cols], or [cols, terms] if `transposed`
/// @param memory  split_bytes(terms, cols), 256-byte aligned
SplitMatrix split(CudaStream& stream, const ConstTensorView<float, 2>& matrix, bool transposed, void* memory);

/// result[r, c] <- result[r, c] + sign · Σ_t left[t, r] · right[right_first + t, c] over the left operand's terms, as
/// good as in fp32: six products of parts on the tensor cores.
///
/// Terms of the right operand that meet the left one's rows of zeros must be finite.
struct SplitProduct {
  SplitMatrix left;
  SplitMatrix right;
  std::int64_t right_first = 0;
  TensorView<float, 2> result;
  float sign = 1;
  bool lower = false;      ///< as of PromotedProduct
  bool cut_terms = false;  ///< likewise
};
void split_product(CudaStream& stream, const SplitProduct& args);
/// Whether this GPU has the instructions, and the result is f32 and aligned as they want it.
bool allows_split_product(const CudaStream& stream, const AnyView<2>& result);

}  // namespace gptqd::cuda
