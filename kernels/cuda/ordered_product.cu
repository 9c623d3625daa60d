#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ordered_product.cuh"

namespace gptqd::cuda {

namespace {

constexpr int threads_across = 16;
constexpr int product_threads = threads_across * threads_across;
/// Terms that are staged in shared memory at a time.
constexpr int depth = 16;
/// Neighbours that a thread loads from shared memory together.
constexpr int run = 4;
/// Tiles that keep the GPU busy: with fewer, smaller ones are taken.
constexpr std::int64_t enough_tiles = 264;

/// c's tile of side 16·side: thread (y, x) has the rows 4y + i + 64·h and the columns 4x + j + 64·h, i, j in [0, 4).
template <class T, int side>
__global__ void __launch_bounds__(product_threads) multiply(Rows<const T> a, Rows<const T> b, Rows<T> c, std::int64_t m,
                                                            std::int64_t n, std::int64_t k, bool accumulate) {
  constexpr int tile = threads_across * side;
  constexpr int loads = tile * depth / product_threads;
  constexpr int runs = side / run;
  __shared__ alignas(16) T staged_a[2][depth][tile + run];
  __shared__ alignas(16) T staged_b[2][depth][tile];
  const int x = static_cast<int>(threadIdx.x) % threads_across;
  const int y = static_cast<int>(threadIdx.x) / threads_across;
  const std::int64_t row = std::int64_t{blockIdx.y} * tile;
  const std::int64_t col = std::int64_t{blockIdx.x} * tile;

  T next_a[loads];
  T next_b[loads];
  const auto load = [&](std::int64_t from) {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * product_threads;
      const std::int64_t r = row + index / depth;
      const std::int64_t t = from + index % depth;
      next_a[i] = r < m && t < k ? a.row(r)[t] : T{0};
      const std::int64_t s = from + index / tile;
      const std::int64_t j = col + index % tile;
      next_b[i] = s < k && j < n ? b.row(s)[j] : T{0};
    }
  };
  const auto stage = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * product_threads;
      staged_a[buffer][index % depth][index / depth] = next_a[i];
      staged_b[buffer][index / tile][index % tile] = next_b[i];
    }
  };

  T sums[side][side] = {};
  load(0);
  stage(0);
  __syncthreads();
  int buffer = 0;
  for (std::int64_t from = 0; from < k; from += depth) {
    const bool more = from + depth < k;
    if (more) {
      load(from + depth);
    }
#pragma unroll
    for (int t = 0; t < depth; ++t) {
      Pack<T, run> left[runs];
      Pack<T, run> right[runs];
#pragma unroll
      for (int h = 0; h < runs; ++h) {
        left[h] = *reinterpret_cast<const Pack<T, run>*>(&staged_a[buffer][t][run * (y + threads_across * h)]);
        right[h] = *reinterpret_cast<const Pack<T, run>*>(&staged_b[buffer][t][run * (x + threads_across * h)]);
      }
#pragma unroll
      for (int i = 0; i < side; ++i) {
#pragma unroll
        for (int j = 0; j < side; ++j) {
          sums[i][j] = fma(left[i / run].values[i % run], right[j / run].values[j % run], sums[i][j]);
        }
      }
    }
    if (more) {
      stage(1 - buffer);  // read by nobody since the last barrier
      __syncthreads();
      buffer = 1 - buffer;
    }
  }
#pragma unroll
  for (int i = 0; i < side; ++i) {
    const std::int64_t r = row + run * (y + threads_across * (i / run)) + i % run;
#pragma unroll
    for (int j = 0; j < side; ++j) {
      const std::int64_t s = col + run * (x + threads_across * (j / run)) + j % run;
      if (r < m && s < n) {
        T* const to = c.row(r) + s;
        *to = accumulate ? *to + sums[i][j] : sums[i][j];
      }
    }
  }
}

}  // namespace

template <class T>
void ordered_product(CudaStream& stream, const ConstTensorView<T, 2>& a, const ConstTensorView<T, 2>& b,
                     const TensorView<T, 2>& c, bool accumulate) {
  const std::int64_t m = c.rows();
  const std::int64_t n = c.cols();
  require(a.rows() == m && b.cols() == n && a.cols() == b.rows(), "ordered_product: shapes do not fit");
  if (m == 0 || n == 0) {
    return;
  }
  const auto launch = [&]<int side>() {
    constexpr int tile = threads_across * side;
    const dim3 grid(grid_size(divide_up(n, tile)), grid_size(divide_up(m, tile)));
    require(divide_up(m, tile) <= 65535, "ordered_product: too many rows for one launch");
    multiply<T, side><<<grid, product_threads, 0, stream.stream()>>>(Rows<const T>(a), Rows<const T>(b), Rows<T>(c), m,
                                                                     n, a.cols(), accumulate);
  };
  if constexpr (std::is_same_v<T, float>) {
    constexpr int large = threads_across * 8;
    if (divide_up(m, large) * divide_up(n, large) >= enough_tiles) {
      return launch.template operator()<8>();
    }
  }
  launch.template operator()<4>();
}

template void ordered_product<float>(CudaStream&, const ConstTensorView<float, 2>&, const ConstTensorView<float, 2>&,
                                     const TensorView<float, 2>&, bool);
template void ordered_product<double>(CudaStream&, const ConstTensorView<double, 2>&, const ConstTensorView<double, 2>&,
                                      const TensorView<double, 2>&, bool);

}  // namespace gptqd::cuda
