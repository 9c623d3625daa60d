#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gram_product.cuh"
#include "kernels/gram.hpp"

namespace gptqd::cuda {

namespace {

/// Terms of one GEMM in fp32 or fp64.
constexpr std::int64_t token_chunk = 4096;
/// Columns of the panel that one such GEMM covers: what it computes above the diagonal is wasted.
constexpr std::int64_t strip_columns = 512;

// A block sums 32 columns of one slice of the tokens, each thread those of one pack on every 32nd token.
constexpr std::int64_t sum_slices = 16;
constexpr int sum_columns = 32;
constexpr int sum_width = 4;
constexpr int sum_packs = sum_columns / sum_width;
constexpr int sum_lines = 32;
constexpr int sum_threads = sum_packs * sum_lines;

/// partial[slice, column]: every 32nd token's squares in ascending order, then these sums in ascending order.
template <class T, bool packs>
__global__ void __launch_bounds__(sum_threads)
    sum_squares(Rows<const T> x, std::int64_t tokens, std::int64_t n, double* partial) {
  __shared__ double lines[sum_lines][sum_columns + 1];
  const int first = static_cast<int>(threadIdx.x) % sum_packs * sum_width;
  const int line = static_cast<int>(threadIdx.x) / sum_packs;
  const std::int64_t column = std::int64_t{blockIdx.x} * sum_columns + first;
  const std::int64_t begin = tokens * blockIdx.y / sum_slices;
  const std::int64_t end = tokens * (blockIdx.y + 1) / sum_slices;
  double own[sum_width] = {};
#pragma unroll 8
  for (std::int64_t t = begin + line; t < end; t += sum_lines) {
    Pack<T, sum_width> pack{};
    if constexpr (packs) {
      if (column < n) {
        pack = load_pack<sum_width>(x.row(t) + column);
      }
    } else {
      for (int i = 0; i < sum_width; ++i) {
        if (column + i < n) {
          pack.values[i] = x.row(t)[column + i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < sum_width; ++i) {
      const auto value = static_cast<double>(widen(pack.values[i]));
      own[i] = fma(value, value, own[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < sum_width; ++i) {
    lines[line][first + i] = own[i];
  }
  __syncthreads();
  const std::int64_t mine = std::int64_t{blockIdx.x} * sum_columns + threadIdx.x;
  if (threadIdx.x < sum_columns && mine < n) {
    double sum = 0;
    for (int i = 0; i < sum_lines; ++i) {
      sum += lines[i][threadIdx.x];
    }
    partial[blockIdx.y * n + mine] = sum;
  }
}

/// sums[c] (+)= Σ partial[., c], in ascending order.
struct JoinSlices {
  const double* partial;
  std::int64_t n;
  double* sums;
  bool accumulate;
  __device__ void operator()(std::int64_t, std::int64_t c) const {
    double sum = 0;
#pragma unroll
    for (std::int64_t slice = 0; slice < sum_slices; ++slice) {
      sum += partial[slice * n + c];
    }
    sums[c] = accumulate ? sums[c] + sum : sum;
  }
};

template <class T>
struct Widen {
  Rows<const T> x;
  Rows<float> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const { y.row(r)[c] = widen(x.row(r)[c]); }
};

/// Column-major: panelᵀ [w, m] = xᵀ[0, w) · x, in strips of columns, lower part.
template <class T>
void add_products(CudaStream& stream, const TensorView<const T, 2>& x, const TensorView<T, 2>& panel, bool accumulate) {
  const T one = 1;
  const T before = accumulate ? 1 : 0;
  const auto pitch = [](const auto& view) { return std::max(view.stride, view.cols()); };
  constexpr auto doing = "a panel of XᵀX";
  for (std::int64_t first = 0; first < panel.cols(); first += strip_columns) {
    const std::int64_t cols = std::min(strip_columns, panel.cols() - first);
    const std::int64_t rows = panel.rows() - first;
    T* const to = panel.row(first) + first;
    if constexpr (std::is_same_v<T, float>) {
      check(cublasSgemm_64(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_T, cols, rows, x.rows(), &one, x.data + first,
                           pitch(x), x.data + first, pitch(x), &before, to, pitch(panel)),
            doing);
    } else {
      check(cublasDgemm_64(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_T, cols, rows, x.rows(), &one, x.data + first,
                           pitch(x), x.data + first, pitch(x), &before, to, pitch(panel)),
            doing);
    }
  }
}

/// In fp32 or fp64 throughout: half types are widened before.
template <class T>
void gram_in_full(CudaStream& stream, const GramPanelArgs& args) {
  using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto panel = args.panel.as<Sum>();
  const std::int64_t m = args.x.cols();
  for (std::int64_t token = 0; token < args.x.rows(); token += token_chunk) {
    const auto chunk = args.x.slice_rows(token, std::min(token_chunk, args.x.rows() - token));
    const bool accumulate = token > 0 || args.accumulate;
    if constexpr (std::is_same_v<T, Sum>) {
      add_products<Sum>(stream, chunk.as<T>(), panel, accumulate);
    } else {
      const TensorView<float, 2> wide(stream.scratch_of<float>(chunk.rows() * m), {chunk.rows(), m});
      for_elements(stream, chunk.rows(), m, Widen<T>{Rows<const T>(chunk), Rows<float>(wide)});
      add_products<float>(stream, wide, panel, accumulate);
    }
  }
}

template <class T>
struct ReadDiagonal {
  Rows<const T> panel;
  double* diagonal;
  __device__ void operator()(std::int64_t, std::int64_t c) const { diagonal[c] = static_cast<double>(panel.row(c)[c]); }
};

template <class T>
struct WriteDiagonal {
  const double* diagonal;
  Rows<T> panel;
  __device__ void operator()(std::int64_t, std::int64_t c) const { panel.row(c)[c] = static_cast<T>(diagonal[c]); }
};

}  // namespace

void CudaBackend::run(Stream& stream, const ColumnSquareSumsArgs& args) {
  enqueue(stream, "column_square_sums", [&](CudaStream& own) {
    const std::int64_t n = args.x.cols();
    if (n == 0) {
      return;
    }
    auto* const partial = own.scratch_of<double>(sum_slices * n);
    with_floating_type(args.x.dtype, [&]<class T>() {
      const auto launch = [&](auto kernel) {
        const dim3 grid(grid_size(divide_up(n, sum_columns)), static_cast<unsigned int>(sum_slices));
        kernel<<<grid, sum_threads, 0, own.stream()>>>(Rows<const T>(args.x), args.x.rows(), n, partial);
      };
      n % sum_width == 0 && allows_packs(sum_width, args.x) ? launch(sum_squares<T, true>)
                                                            : launch(sum_squares<T, false>);
    });
    for_elements(own, 1, n, JoinSlices{partial, n, args.sums.data, args.accumulate});
  });
}

/// Half types on tensor cores whose sums are promoted, where the GPU has the instructions (Hopper) and rows begin at
/// multiples of 16 bytes; elsewhere, and for f32 and f64, GEMMs in full precision.
void CudaBackend::run(Stream& stream, const GramPanelArgs& args) {
  enqueue(stream, "gram_panel", [&](CudaStream& own) {
    if (args.panel.size() == 0) {
      return;
    }
    if (args.x.rows() == 0) {
      if (!args.accumulate) {
        const auto element = static_cast<std::size_t>(size_of(args.panel.dtype));
        check(cudaMemset2DAsync(args.panel.data, static_cast<std::size_t>(args.panel.stride) * element, 0,
                                static_cast<std::size_t>(args.panel.cols()) * element,
                                static_cast<std::size_t>(args.panel.rows()), own.stream()),
              "gram_panel");
      }
      return;
    }
    if (allows_gram_product(own, args.x, args.panel)) {
      return gram_product(own, {.x = args.x, .panel = args.panel.as<float>(), .accumulate = args.accumulate});
    }
    with_floating_type(args.x.dtype, [&]<class T>() { gram_in_full<T>(own, args); });
  });
}

void CudaBackend::run(Stream& stream, const GetDiagonalArgs& args) {
  enqueue(stream, "get_diagonal", [&](CudaStream& own) {
    const auto read = [&]<class T>() {
      for_elements(own, 1, args.panel.cols(), ReadDiagonal<T>{Rows<const T>(args.panel), args.diagonal.data});
    };
    args.panel.dtype == DType::f64 ? read.template operator()<double>() : read.template operator()<float>();
  });
}

void CudaBackend::run(Stream& stream, const SetDiagonalArgs& args) {
  enqueue(stream, "set_diagonal", [&](CudaStream& own) {
    const auto write = [&]<class T>() {
      for_elements(own, 1, args.panel.cols(), WriteDiagonal<T>{args.diagonal.data, Rows<T>(args.panel)});
    };
    args.panel.dtype == DType::f64 ? write.template operator()<double>() : write.template operator()<float>();
  });
}

}  // namespace gptqd::cuda
