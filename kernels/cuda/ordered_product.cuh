#pragma once
/// @file Products in fp32 and fp64 whose bits depend on the operands alone.
#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

/// c <- a b, or c + a b with `accumulate`. a [m, k], b [k, n], c [m, n], row-major with any row strides.
///
/// Each element's products are added by fused multiply-adds in ascending order of k, from 0, and then to c: neither the
/// extents nor the way in which rows or columns are cut into calls changes a bit, which cuBLAS does not promise.
template <class T>
void ordered_product(CudaStream& stream, const ConstTensorView<T, 2>& a, const ConstTensorView<T, 2>& b,
                     const TensorView<T, 2>& c, bool accumulate);

extern template void ordered_product<float>(CudaStream&, const ConstTensorView<float, 2>&,
                                            const ConstTensorView<float, 2>&, const TensorView<float, 2>&, bool);
extern template void ordered_product<double>(CudaStream&, const ConstTensorView<double, 2>&,
                                             const ConstTensorView<double, 2>&, const TensorView<double, 2>&, bool);

}  // namespace gptqd::cuda
