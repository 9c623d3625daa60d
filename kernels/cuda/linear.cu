#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul.hpp"
#include "kernels/linear.hpp"

namespace gptqd::cuda {

namespace {

/// fp32 products of one tile of rows, where cublasLt does not take the whole operation.
constexpr std::int64_t tile_bytes = std::int64_t{64} << 20;

template <class T>
struct RoundBias {
  const float* bias;
  T* rounded;
  __device__ void operator()(std::int64_t, std::int64_t c) const { rounded[c] = convert_element<T>(bias[c]); }
};

/// y <- activation(products + bias), or + y.
template <class T, Activation activation>
struct Finish {
  Rows<const float> products;  // null data: zeros
  const float* bias;           // may be null
  bool accumulate;
  Rows<T> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    float value = products.data == nullptr ? 0.0f : products.row(r)[c];
    if (bias != nullptr) {
      value += bias[c];
    }
    T* const to = y.row(r) + c;
    if (accumulate) {
      value += widen(*to);
    }
    *to = convert_element<T>(activate<activation>(value));
  }
};

/// The operation by products in fp32 and a pass over them: any shape, alignment and activation.
template <class T>
void linear_in_two_steps(CudaStream& stream, const LinearArgs& args) {
  const std::int64_t out = args.weight.rows();
  const std::int64_t tile = std::max<std::int64_t>(1, std::min(args.x.rows(), tile_bytes / 4 / out));
  const bool has_products = args.x.cols() > 0;
  for (std::int64_t first = 0; first < args.x.rows(); first += tile) {
    const auto x = args.x.slice_rows(first, std::min(tile, args.x.rows() - first));
    const auto y = args.y.slice_rows(first, x.rows());
    TensorView<float, 2> products;
    if (has_products) {
      products = TensorView<float, 2>(stream.scratch_of<float>(tile * out), {x.rows(), out});
      product(stream, x, args.weight, products);
    }
    with_activation(args.activation, [&]<Activation activation>() {
      for_elements(stream, x.rows(), out,
                   Finish<T, activation>{Rows<const float>(products), args.bias ? args.bias->data : nullptr,
                                         args.accumulate, Rows<T>(y)});
    });
  }
}

}  // namespace

/// Sums are rounded to the compute dtype once, or, where a bias comes on top of what is accumulated to, twice: cuBLAS
/// adds it last. The bias takes part rounded to the compute dtype: exactly, for those of a model stored in it.
void CudaBackend::run(Stream& stream, const LinearArgs& args) {
  enqueue(stream, "linear", [&](CudaStream& own) {
    if (args.y.size() == 0) {
      return;
    }
    with_compute_type(args.x.dtype, [&]<class T>() {
      if (args.x.cols() == 0 || !has_epilogue(args.activation) || !takes_matmul(args.x, args.weight, args.y)) {
        return linear_in_two_steps<T>(own, args);
      }
      const void* bias = nullptr;
      if (args.bias) {
        T* const rounded = own.scratch_of<T>(args.weight.rows());
        for_elements(own, 1, args.weight.rows(), RoundBias<T>{args.bias->data, rounded});
        bias = rounded;
      }
      own.matmul_plans().run(own, {.x = args.x,
                                   .weight = args.weight,
                                   .bias = bias,
                                   .y = args.y,
                                   .activation = args.activation,
                                   .accumulate = args.accumulate});
    });
  });
}

}  // namespace gptqd::cuda
