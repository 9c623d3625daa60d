#pragma once
/// @file cublasLt's matrix product with its epilogues, planned once for each shape.
#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>

#include "kernels/activation.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd::cuda {

class CudaStream;

/// The libraries' name of a compute dtype. @throws Error (internal) for another
cudaDataType_t library_type(DType dtype);

/// y <- activation(x weightᵀ + bias), or + y with accumulate; fp32 inside, rounded once. Row-major, any row strides.
///
/// All memory starts at multiples of 16 bytes, rows too (takes_matmul), and no extent is 0.
struct MatmulArgs {
  ConstAnyView<2> x;           ///< [tokens, in]
  ConstAnyView<2> weight;      ///< [out, in], same dtype
  const void* bias = nullptr;  ///< [out] in the dtype of y, or null
  AnyView<2> y;                ///< [tokens, out], same dtype, or f32
  Activation activation = Activation::none;
  bool accumulate = false;
};
bool takes_matmul(const ConstAnyView<2>& x, const ConstAnyView<2>& weight, const AnyView<2>& y);
/// Whether matmul() has this activation in its epilogue, as activation.hpp defines it.
bool has_epilogue(Activation activation);

/// The plans of one stream: cublasLt's choice of a kernel depends on the shape, strides and epilogue alone.
class MatmulPlans {
 public:
  MatmulPlans();
  ~MatmulPlans();
  void run(CudaStream& stream, const MatmulArgs& args);

 private:
  struct Key;
  class Plan;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

/// products <- x weightᵀ in fp32, of any alignment.
void product(CudaStream& stream, const ConstAnyView<2>& x, const ConstAnyView<2>& weight,
             const TensorView<float, 2>& products);

}  // namespace gptqd::cuda
