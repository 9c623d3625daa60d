#include "kernels/cuda/matmul.hpp"

#include <compare>

#include "kernels/base/unique_handle.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

namespace {

/// cublasLt's fastest kernels want this of each pointer and row.
constexpr std::int64_t row_alignment = 16;

struct DescriptionTraits {
  using Handle = cublasLtMatmulDesc_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cublasLtMatmulDescDestroy(handle); }
};
struct LayoutTraits {
  using Handle = cublasLtMatrixLayout_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cublasLtMatrixLayoutDestroy(handle); }
};
struct PreferenceTraits {
  using Handle = cublasLtMatmulPreference_t;
  static constexpr Handle none = nullptr;
  static void destroy(Handle handle) noexcept { cublasLtMatmulPreferenceDestroy(handle); }
};
using UniqueLayout = UniqueHandle<LayoutTraits>;

/// The matrix of row-major `view` as cublasLt sees it: its transpose, column-major.
UniqueLayout layout_of(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  cublasLtMatrixLayout_t handle = nullptr;
  check(cublasLtMatrixLayoutCreate(&handle, library_type(dtype), static_cast<std::uint64_t>(cols),
                                   static_cast<std::uint64_t>(rows), std::max(stride, cols)),
        "describing a matrix");
  return UniqueLayout(handle);
}

cublasLtEpilogue_t epilogue_of(bool bias, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    case Activation::gelu_tanh:
      return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    default:
      return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  }
}

template <class View>
bool has_aligned_rows(const View& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) % row_alignment == 0 &&
         view.stride * size_of(view.dtype) % row_alignment == 0;
}

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof(value)), "describing a product");
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), "describing a product");
}

}  // namespace

cudaDataType_t library_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::f32:
      return CUDA_R_32F;
    case DType::f16:
      return CUDA_R_16F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      throw Error(ErrorKind::internal, fmt::format("cuda backend: no products of {}", name_of(dtype)));
  }
}

bool takes_matmul(const ConstAnyView<2>& x, const ConstAnyView<2>& weight, const AnyView<2>& y) {
  return has_aligned_rows(x) && has_aligned_rows(weight) && has_aligned_rows(y);
}

bool has_epilogue(Activation activation) { return activation != Activation::silu; }

struct MatmulPlans::Key {
  DType dtype;
  DType result;
  std::int64_t tokens;
  std::int64_t in;
  std::int64_t out;
  std::int64_t x_stride;
  std::int64_t weight_stride;
  std::int64_t y_stride;
  bool bias;
  Activation activation;
  bool accumulate;
  auto operator<=>(const Key&) const = default;
};

/// Column-major: yᵀ [out, tokens] = weight [in, out]ᵀ · xᵀ [in, tokens].
class MatmulPlans::Plan {
 public:
  Plan(cublasLtHandle_t blas, const Key& key)
      : weight_(layout_of(key.dtype, key.out, key.in, key.weight_stride)),
        x_(layout_of(key.dtype, key.tokens, key.in, key.x_stride)),
        y_(layout_of(key.result, key.tokens, key.out, key.y_stride)) {
    cublasLtMatmulDesc_t description = nullptr;
    check(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    description_ = UniqueHandle<DescriptionTraits>(description);
    set(description, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(description, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(key.bias, key.activation));
    if (key.bias) {
      set(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, library_type(key.result));
    }

    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "describing a product");
    const UniqueHandle<PreferenceTraits> owner(preference);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(CudaStream::workspace_bytes));
    // A split sum is added up in fp32, in order, in the workspace: neither in place nor in the type of the result.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(preference, attribute, static_cast<std::uint32_t>(row_alignment));
    }
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    check(cublasLtMatmulAlgoGetHeuristic(blas, description, weight_.get(), x_.get(), y_.get(), y_.get(), preference, 1,
                                         &result, &found),
          "choosing a kernel");
    require(found == 1, fmt::format("cuBLAS has no kernel for [{}, {}] x [{}, {}] of {}", key.tokens, key.in, key.out,
                                    key.in, name_of(key.dtype)));
    algorithm_ = result.algo;
  }

  void run(CudaStream& stream, const MatmulArgs& args) {
    if (args.bias != nullptr) {
      set(description_.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
    }
    const float one = 1.0f;
    const float before = args.accumulate ? 1.0f : 0.0f;
    check(cublasLtMatmul(stream.blas_lt(), description_.get(), &one, args.weight.data, weight_.get(), args.x.data,
                         x_.get(), &before, args.y.data, y_.get(), args.y.data, y_.get(), &algorithm_,
                         stream.workspace(), static_cast<std::size_t>(CudaStream::workspace_bytes), stream.stream()),
          "a matrix product");
  }

 private:
  UniqueHandle<DescriptionTraits> description_;
  UniqueLayout weight_;
  UniqueLayout x_;
  UniqueLayout y_;
  cublasLtMatmulAlgo_t algorithm_{};
};

MatmulPlans::MatmulPlans() = default;
MatmulPlans::~MatmulPlans() = default;

void MatmulPlans::run(CudaStream& stream, const MatmulArgs& args) {
  const Key key{.dtype = args.x.dtype,
                .result = args.y.dtype,
                .tokens = args.x.rows(),
                .in = args.x.cols(),
                .out = args.weight.rows(),
                .x_stride = args.x.stride,
                .weight_stride = args.weight.stride,
                .y_stride = args.y.stride,
                .bias = args.bias != nullptr,
                .activation = args.activation,
                .accumulate = args.accumulate};
  auto& plan = plans_[key];
  if (!plan) {
    plan = std::make_unique<Plan>(stream.blas_lt(), key);
  }
  plan->run(stream, args);
}

void product(CudaStream& stream, const ConstAnyView<2>& x, const ConstAnyView<2>& weight,
             const TensorView<float, 2>& products) {
  const float one = 1.0f;
  const float zero = 0.0f;
  const auto type = library_type(x.dtype);
  const auto pitch = [](const auto& view) { return std::max<std::int64_t>({view.stride, view.cols(), 1}); };
  check(cublasGemmEx_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, weight.rows(), x.rows(), x.cols(), &one, weight.data,
                        type, pitch(weight), x.data, type, pitch(x), &zero, products.data, CUDA_R_32F, pitch(products),
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "a matrix product");
}

}  // namespace gptqd::cuda
