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

/// A block reads its row before it writes it: y may be x. An index outside x reads its column 0.
template <class T>
__global__ void __launch_bounds__(staged_threads)
    gather_staged(Rows<const T> x, std::int64_t n, const std::int32_t* index, std::int64_t m, Rows<T> y) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* const staged = reinterpret_cast<T*>(memory);
  for (std::int64_t c = threadIdx.x; c < n; c += staged_threads) {
    staged[c] = x.row(blockIdx.x)[c];
  }
  __syncthreads();
  for (std::int64_t c = threadIdx.x; c < m; c += staged_threads) {
    const std::int32_t column = index[c];
    y.row(blockIdx.x)[c] = staged[column >= 0 && column < n ? column : 0];
  }
}

/// @return whether rows of x are narrow enough
template <class T>
bool gather_staged_rows(CudaStream& stream, const GatherColumnsArgs& args) {
  const std::int64_t row_bytes = args.x.cols() * static_cast<std::int64_t>(sizeof(T));
  const auto most = stream.gpu().properties().sharedMemPerBlockOptin;
  if (row_bytes > static_cast<std::int64_t>(most)) {
    return false;
  }
  give_shared_memory(gather_staged<T>, static_cast<std::int64_t>(most));
  gather_staged<T><<<grid_size(args.x.rows()), staged_threads, static_cast<std::size_t>(row_bytes), stream.stream()>>>(
      Rows<const T>(args.x), args.x.cols(), args.index.data, args.y.cols(), Rows<T>(args.y));
  return true;
}

template <class T>
__device__ T load_shared(std::uint32_t address) {
  T value;
  if constexpr (sizeof(T) == 2) {
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  } else {
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
  }
  return value;
}
/// The compiler no longer knows where the value comes from, and keeps it in a register.
__device__ inline void hide(std::uint32_t& value) { asm volatile("" : "+r"(value)); }

constexpr int ring_threads = 512;
constexpr int pack_bytes = 16;

/// A thread's packs among rows of `packs` packs: the first, and every ring_threads-th after it, of every
/// rows_at_once-th row. Short rows are several at once.
struct ShareOfRows {
  int rows_at_once;
  int row;
  int first;

  __device__ explicit ShareOfRows(int packs)
      : rows_at_once(max(1, ring_threads / packs)),
        row(packs < ring_threads ? static_cast<int>(threadIdx.x) / packs : 0),
        first(row < rows_at_once ? static_cast<int>(threadIdx.x) - row * packs : packs) {}
};

/// Rows come through a ring in shared memory, some stages ahead, `stage_rows` a stage; a block takes every gridDim.x-th
/// stage. They are written when a whole stage has been read: y may be x. `most_packs` is what a thread has of a row of
/// y, whose indices it keeps. An index outside x reads its column 0.
///
/// Random elements of two bytes lie in banks so that 32 of them take 3.5 clocks to read. With what comes in and goes
/// out a multiprocessor has 14 bytes a clock; its share of an H200's memory, which is read and written, 9.
template <class T, int most_packs, int stages, int blocks>
__global__ void __launch_bounds__(ring_threads, blocks)
    gather_through_ring(Rows<const T> x, int n, const std::int32_t* index, int m, Rows<T> y, std::int64_t rows,
                        int stage_rows) {
  extern __shared__ __align__(pack_bytes) unsigned char memory[];
  constexpr int width = full_width<T>;
  using Element = Pack<T, width>;
  const int from_packs = n / width;
  const int to_packs = m / width;
  const int stage_bytes = stage_rows * from_packs * pack_bytes;
  const ShareOfRows from(from_packs);
  const ShareOfRows to(to_packs);

  const auto first_row = [&](std::int64_t stage) { return (blockIdx.x + stage * gridDim.x) * stage_rows; };
  const auto rows_of = [&](std::int64_t first) {
    return static_cast<int>(min(static_cast<std::int64_t>(stage_rows), rows - first));
  };
  const auto load = [&](std::int64_t stage) {
    const std::int64_t first = first_row(stage);
    unsigned char* const at = memory + static_cast<int>(stage % stages) * stage_bytes;
    for (int r = from.row, count = rows_of(first); r < count; r += from.rows_at_once) {
      const T* const row = x.row(first + r);
#pragma unroll 1
      for (int pack = from.first; pack < from_packs; pack += ring_threads) {
        stream_in_background(reinterpret_cast<Element*>(at) + r * from_packs + pack,
                             reinterpret_cast<const Element*>(row) + pack);
      }
    }
    end_group_of_copies();
  };

#pragma unroll 1
  for (int stage = 0; stage < stages - 1; ++stage) {
    load(stage);
  }
  // Where elements lie in a row: two 16-bit numbers in a register.
  constexpr int unit = stages > 2 ? 1 : 2;  // bytes: a half of shared memory may be more than 65,536
  std::uint32_t places[most_packs][width / 2];
#pragma unroll
  for (int k = 0; k < most_packs; ++k) {
    const int pack = min(to.first + k * ring_threads, to_packs - 1);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const std::int32_t column = index[pack * width + i];
      const auto place = static_cast<std::uint32_t>(column >= 0 && column < n ? column : 0) * (sizeof(T) / unit);
      places[k][i / 2] = i % 2 == 0 ? place : places[k][i / 2] | place << 16;
    }
  }

  for (std::int64_t stage = 0; first_row(stage) < rows; ++stage) {
    wait_for_groups_of_copies<stages - 2>();
    __syncthreads();  // the stage is there for all, and all have read the one before
    load(stage + stages - 1);
    const std::int64_t first = first_row(stage);
    const std::uint32_t at = shared_address(memory) + static_cast<int>(stage % stages) * stage_bytes;
    for (int r = to.row, count = rows_of(first); r < count; r += to.rows_at_once) {
      std::uint32_t row = at + r * from_packs * pack_bytes;
      hide(row);
      T* const out = y.row(first + r);
#pragma unroll
      for (int k = 0; k < most_packs; ++k) {
        const int pack = to.first + k * ring_threads;
        if (pack < to_packs) {
          Element gathered;
#pragma unroll
          for (int i = 0; i < width; ++i) {
            std::uint32_t pair = places[k][i / 2];
            hide(pair);  // taken apart in every row anew: there are no registers for all places
            gathered.values[i] = load_shared<T>(row + unit * (i % 2 == 0 ? pair & 0xffff : pair >> 16));
          }
          store_pack<width>(out + pack * width, gathered);
        }
      }
    }
  }
}

/// @return whether rows are short enough for so many stages of so many blocks of a multiprocessor
template <class T, int most_packs, int stages, int blocks>
bool gather_by_ring(CudaStream& stream, const GatherColumnsArgs& args) {
  const auto& gpu = stream.gpu().properties();
  const auto room = static_cast<std::int64_t>(
      std::min(gpu.sharedMemPerBlockOptin, gpu.sharedMemPerMultiprocessor / blocks - gpu.reservedSharedMemPerBlock));
  const std::int64_t row_bytes = args.x.cols() * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t most_blocks = std::int64_t{gpu.multiProcessorCount} * blocks;
  const std::int64_t stage_rows = std::min(room / stages / row_bytes, divide_up(args.x.rows(), most_blocks));
  if (stage_rows == 0 || args.y.cols() > std::int64_t{most_packs} * ring_threads * full_width<T>) {
    return false;
  }
  const auto kernel = gather_through_ring<T, most_packs, stages, blocks>;
  give_shared_memory(kernel, room);
  const auto grid = grid_size(divide_up(args.x.rows(), stage_rows), most_blocks);
  kernel<<<grid, ring_threads, static_cast<std::size_t>(stages * stage_rows * row_bytes), stream.stream()>>>(
      Rows<const T>(args.x), static_cast<int>(args.x.cols()), args.index.data, static_cast<int>(args.y.cols()),
      Rows<T>(args.y), args.x.rows(), static_cast<int>(stage_rows));
  return true;
}

/// @return whether rows are whole packs, and short enough
template <class T>
bool gather_through_shared_memory(CudaStream& stream, const GatherColumnsArgs& args) {
  constexpr int width = full_width<T>;
  return args.x.cols() % width == 0 && args.y.cols() % width == 0 && allows_packs(width, args.x, args.y) &&
         (gather_by_ring<T, 4, 4, 2>(stream, args) || gather_by_ring<T, 15, 2, 1>(stream, args));
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
      using Bits = std::conditional_t<sizeof(From) == 2, std::uint16_t,
                                      std::conditional_t<sizeof(From) == 4, std::uint32_t, std::uint64_t>>;
      if (gather_through_shared_memory<Bits>(own, args) || (args.in_place() && gather_staged_rows<Bits>(own, args))) {
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
