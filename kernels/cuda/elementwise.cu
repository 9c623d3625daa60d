#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"
#include "kernels/elementwise.hpp"

namespace gptqd::cuda {

namespace {

template <class T, int width>
struct AddPack {
  Rows<const T> x;
  Rows<T> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    T* const to = y.row(r) + c * width;
    const auto from = load_pack<width>(x.row(r) + c * width);
    auto sum = load_pack<width>(to);
    for (int i = 0; i < width; ++i) {
      sum.values[i] += from.values[i];
    }
    store_pack<width>(to, sum);
  }
};

template <class From, class To, int width>
struct ConvertPack {
  Rows<const From> x;
  Rows<To> y;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const auto from = load_pack<width>(x.row(r) + c * width);
    Pack<To, width> to;
    for (int i = 0; i < width; ++i) {
      to.values[i] = convert_element<To>(from.values[i]);
    }
    store_pack<width>(y.row(r) + c * width, to);
  }
};

/// Columns that one thread gathers, and rows for which it keeps their indices.
constexpr int gather_width = 8;
constexpr std::int64_t gather_rows = 32;
constexpr int gather_threads = 128;

/// An index outside x reads its column 0: expect_inside() reports it.
template <class From, class To, bool packs>
__global__ void __launch_bounds__(gather_threads) gather(Rows<const From> x, std::int64_t n, const std::int32_t* index,
                                                         std::int64_t m, Rows<To> y, std::int64_t rows) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * gather_threads + threadIdx.x) * gather_width;
  if (first >= m) {
    return;
  }
  std::int32_t columns[gather_width];
  for (int i = 0; i < gather_width; ++i) {
    const std::int32_t column = first + i < m ? index[first + i] : 0;
    columns[i] = column >= 0 && column < n ? column : 0;
  }
  for (std::int64_t chunk = blockIdx.y; chunk * gather_rows < rows; chunk += gridDim.y) {
    const std::int64_t end = min(rows, (chunk + 1) * gather_rows);
    for (std::int64_t r = chunk * gather_rows; r < end; ++r) {
      const From* const from = x.row(r);
      To* const to = y.row(r) + first;
      Pack<To, gather_width> pack;
      for (int i = 0; i < gather_width; ++i) {
        pack.values[i] = convert_element<To>(from[columns[i]]);
      }
      if constexpr (packs) {
        store_pack<gather_width>(to, pack);
      } else {
        for (int i = 0; i < gather_width && first + i < m; ++i) {
          to[i] = pack.values[i];
        }
      }
    }
  }
}

constexpr int staged_threads = 512;
/// Shared memory of one block: two blocks fit on a multiprocessor.
constexpr std::int64_t staged_bytes = std::int64_t{96} << 10;
constexpr std::int64_t most_staged_bytes = std::int64_t{224} << 10;

/// Rows pass through shared memory: memory is read in order, and y may be x. An index outside x reads its column 0.
template <class T>
__global__ void __launch_bounds__(staged_threads)
    gather_staged(Rows<const T> x, std::int64_t n, const std::int32_t* index, std::int64_t m, Rows<T> y,
                  std::int64_t rows, int rows_a_block, bool packs) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* const staged = reinterpret_cast<T*>(memory);
  constexpr int width = full_width<T>;
  const std::int64_t first = std::int64_t{blockIdx.x} * rows_a_block;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(rows_a_block), rows - first));
  for (int r = 0; r < count; ++r) {
    const T* const from = x.row(first + r);
    T* const to = staged + r * n;
    if (packs) {
      for (std::int64_t c = threadIdx.x * width; c < n; c += staged_threads * width) {
        store_pack<width>(to + c, load_pack<width>(from + c));
      }
    } else {
      for (std::int64_t c = threadIdx.x; c < n; c += staged_threads) {
        to[c] = from[c];
      }
    }
  }
  __syncthreads();
  for (std::int64_t c = threadIdx.x * width; c < m; c += staged_threads * width) {
    std::int32_t columns[width];
    for (int i = 0; i < width; ++i) {
      const std::int32_t column = c + i < m ? index[c + i] : 0;
      columns[i] = column >= 0 && column < n ? column : 0;
    }
    for (int r = 0; r < count; ++r) {
      const T* const from = staged + r * n;
      T* const to = y.row(first + r) + c;
      if (packs) {
        Pack<T, width> pack;
        for (int i = 0; i < width; ++i) {
          pack.values[i] = from[columns[i]];
        }
        store_pack<width>(to, pack);
      } else {
        for (int i = 0; i < width && c + i < m; ++i) {
          to[i] = from[columns[i]];
        }
      }
    }
  }
}

/// @return whether rows of x are narrow enough
template <class T>
bool gather_through_shared_memory(CudaStream& stream, const GatherColumnsArgs& args) {
  const std::int64_t row_bytes = args.x.cols() * static_cast<std::int64_t>(sizeof(T));
  if (row_bytes > most_staged_bytes) {
    return false;
  }
  const bool packs = args.x.cols() % full_width<T> == 0 && args.y.cols() % full_width<T> == 0 &&
                     allows_packs(full_width<T>, args.x, args.y);
  const auto rows_a_block = static_cast<int>(std::clamp<std::int64_t>(staged_bytes / row_bytes, 1, 16));
  const auto bytes = static_cast<int>(rows_a_block * row_bytes);
  check(cudaFuncSetAttribute(gather_staged<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(most_staged_bytes)),
        "gather_columns");
  gather_staged<T><<<grid_size(divide_up(args.x.rows(), rows_a_block)), staged_threads, static_cast<std::size_t>(bytes),
                     stream.stream()>>>(Rows<const T>(args.x), args.x.cols(), args.index.data, args.y.cols(),
                                        Rows<T>(args.y), args.x.rows(), rows_a_block, packs);
  return true;
}

template <class From, class To>
void gather_columns(CudaStream& stream, const GatherColumnsArgs& args) {
  const std::int64_t rows = args.y.rows();
  const std::int64_t m = args.y.cols();
  const dim3 grid(grid_size(divide_up(m, std::int64_t{gather_threads} * gather_width)),
                  grid_size(divide_up(rows, gather_rows), 65535));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, gather_threads, 0, stream.stream()>>>(Rows<const From>(args.x), args.x.cols(), args.index.data, m,
                                                         Rows<To>(args.y), rows);
  };
  if (m % gather_width == 0 && allows_packs(gather_width, args.y)) {
    launch(gather<From, To, true>);
  } else {
    launch(gather<From, To, false>);
  }
}

/// The matrix again, dense, in the stream's scratch memory.
ConstAnyView<2> copied(CudaStream& stream, ConstAnyView<2> x) {
  const AnyView<2> copy(stream.scratch(x.bytes()), x.dtype, x.shape);
  const auto row_bytes = static_cast<std::size_t>(x.cols() * size_of(x.dtype));
  check(cudaMemcpy2DAsync(copy.data, row_bytes, x.data, static_cast<std::size_t>(x.stride * size_of(x.dtype)),
                          row_bytes, static_cast<std::size_t>(x.rows()), cudaMemcpyDeviceToDevice, stream.stream()),
        "gather_columns");
  return copy;
}

}  // namespace

void CudaBackend::run(Stream& stream, const AddArgs& args) {
  enqueue(stream, "add", [&](CudaStream& own) {
    with_floating_type(args.y.dtype, [&]<class T>() {
      if constexpr (sizeof(T) >= sizeof(float)) {
        constexpr int width = full_width<T>;
        const Rows<const T> x(args.x);
        const Rows<T> y(args.y);
        if (args.y.cols() % width == 0 && allows_packs(width, args.x, args.y)) {
          for_elements(own, args.y.rows(), args.y.cols() / width, AddPack<T, width>{x, y});
        } else {
          for_elements(own, args.y.rows(), args.y.cols(), AddPack<T, 1>{x, y});
        }
      }
    });
  });
}

void CudaBackend::run(Stream& stream, const ConvertArgs& args) {
  enqueue(stream, "convert", [&](CudaStream& own) {
    with_floating_type(args.x.dtype, [&]<class From>() {
      with_floating_type(args.y.dtype, [&]<class To>() {
        constexpr int width = std::min(full_width<From>, full_width<To>);
        const Rows<const From> x(args.x);
        const Rows<To> y(args.y);
        if (args.y.cols() % width == 0 && allows_packs(width, args.x, args.y)) {
          for_elements(own, args.y.rows(), args.y.cols() / width, ConvertPack<From, To, width>{x, y});
        } else {
          for_elements(own, args.y.rows(), args.y.cols(), ConvertPack<From, To, 1>{x, y});
        }
      });
    });
  });
}

void CudaBackend::run(Stream& stream, const GatherColumnsArgs& args) {
  enqueue(stream, "gather_columns", [&](CudaStream& own) {
    const std::int64_t n = args.x.cols();
    expect_inside(own, args.index, 0, n, [n](const Finding& found) {
      return fmt::format("gather_columns: index[{}] = {}, expected an index in [0, {})", found.position, found.value,
                         n);
    });
    if (args.y.size() == 0 || n == 0) {
      return;
    }
    with_floating_type(args.x.dtype, [&]<class From>() {
      if constexpr (std::is_same_v<From, float>) {
        if (args.y.dtype == DType::f64) {
          return cuda::gather_columns<float, double>(own, args);
        }
      }
      if (gather_through_shared_memory<From>(own, args)) {
        return;
      }
      GatherColumnsArgs direct = args;
      if (args.in_place()) {
        // Rows wider than shared memory: through a copy.
        direct.x = copied(own, args.x);
      }
      cuda::gather_columns<From, From>(own, direct);
    });
  });
}

}  // namespace gptqd::cuda
