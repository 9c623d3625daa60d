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

// A block has 32 columns and all tokens, each thread 16 bytes of every 128th token of half types. Some tokens are on
// their way to the thread's own places in shared memory: registers would hold too few.
constexpr int sum_columns = 32;
constexpr int sum_threads = 512;
constexpr int sum_warps = sum_threads / 32;
constexpr int sum_places = 10;
constexpr int sum_bytes = sum_places * sum_threads * 16;

/// sums[c] (+)= Σ x[., c]². Each thread's tokens in ascending order; then threads in pairs, of a warp and of the block.
template <class T, bool packs>
__global__ void __launch_bounds__(sum_threads, 2)
    sum_squares(Rows<const T> x, std::int64_t tokens, std::int64_t n, double* sums, bool accumulate) {
  constexpr int width = full_width<T>;
  constexpr int lines = sum_threads * width / sum_columns;
  static_assert(sum_columns == 32);  // a lane each, in the end
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t line = static_cast<int>(threadIdx.x) / (sum_columns / width);
  int mine = static_cast<int>(threadIdx.x) % (sum_columns / width) * width;
  const std::int64_t first = std::int64_t{blockIdx.x} * sum_columns;
  const std::int64_t column = first + mine;
  double own[width] = {};
  const auto add = [&](const Pack<T, width>& pack) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const auto value = static_cast<double>(widen(pack.values[i]));
      own[i] = fma(value, value, own[i]);
    }
  };
  if constexpr (packs) {
    extern __shared__ __align__(16) unsigned char memory[];
    auto* const places = reinterpret_cast<Pack<T, width>*>(memory) + threadIdx.x;
    const std::int64_t end = column < n ? tokens : 0;
    const auto load = [&](std::int64_t t, int place) {
      if (t < end) {
        stream_in_background(places + place * sum_threads, reinterpret_cast<const Pack<T, width>*>(x.row(t) + column));
      }
      end_group_of_copies();
    };
    for (int place = 0; place < sum_places; ++place) {
      load(line + place * lines, place);
    }
    int place = 0;
#pragma unroll 1
    for (std::int64_t t = line; t < end; t += lines) {
      wait_for_groups_of_copies<sum_places - 1>();
      const Pack<T, width> pack = places[place * sum_threads];
      add(pack);
      load(t + sum_places * lines, place);
      place = place == sum_places - 1 ? 0 : place + 1;
    }
  } else {
    for (std::int64_t t = line; t < tokens; t += lines) {
      Pack<T, width> pack{};
      for (int i = 0; i < width; ++i) {
        if (column + i < n) {
          pack.values[i] = x.row(t)[column + i];
        }
      }
      add(pack);
    }
  }
  // Of the columns that two lanes share each goes on with half, until it has one.
#pragma unroll
  for (int kept = width / 2, distance = 16; kept > 0; kept /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
    mine += upper ? kept : 0;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const double given = upper ? own[i] : own[i + kept];
      own[i] = (upper ? own[i + kept] : own[i]) + __shfl_xor_sync(0xffffffffu, given, distance);
    }
  }
  __shared__ double found[sum_warps][sum_columns + 1];
  found[threadIdx.x / 32][mine] = own[0];
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) % sum_warps;
  const int joined = static_cast<int>(threadIdx.x) / sum_warps;
  double sum = found[warp][joined];
#pragma unroll
  for (int distance = sum_warps / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (warp == 0 && first + joined < n) {
    double* const to = sums + first + joined;
    *to = accumulate ? *to + sum : sum;
  }
}

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
    with_floating_type(args.x.dtype, [&]<class T>() {
      constexpr int width = full_width<T>;
      const auto launch = [&](auto kernel, int bytes) {
        give_shared_memory(kernel, bytes);
        kernel<<<grid_size(divide_up(n, sum_columns)), sum_threads, static_cast<std::size_t>(bytes), own.stream()>>>(
            Rows<const T>(args.x), args.x.rows(), n, args.sums.data, args.accumulate);
      };
      n % width == 0 && allows_packs(width, args.x) ? launch(sum_squares<T, true>, sum_bytes)
                                                    : launch(sum_squares<T, false>, 0);
    });
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
