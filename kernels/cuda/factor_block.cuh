#pragma once
/// @file Cholesky factorization of the first columns of a panel in fp32, in two kernels and without the host.
#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

/// Most columns of one block.
inline constexpr std::int64_t factor_block_columns = 128;
/// Bytes of device memory that factor_block() takes: L11⁻ᵀ without most of its zeros.
inline constexpr std::int64_t factor_block_bytes = factor_block_columns * (factor_block_columns + 16) / 2 * 4;

/// The first rows are the block A11 = L11 L11ᵀ (lower part), the others become L21 = A21 L11⁻ᵀ. Nothing above the
/// diagonal is read or written.
///
/// Does nothing where *status is not 0. A pivot that is not a positive, finite and normal number: *status = first + its
/// 1-based place; the columns are then unspecified. A row's bits do not depend on the other rows below the block.
/// @param columns  [m, w], w <= factor_block_columns, w <= m
/// @param memory   factor_block_bytes, 256-byte aligned
void factor_block(CudaStream& stream, const TensorView<float, 2>& columns, std::int64_t first, std::int32_t* status,
                  void* memory);

}  // namespace gptqd::cuda
