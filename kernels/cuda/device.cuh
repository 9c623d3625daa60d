#pragma once
/// @file What the kernels share: element types, 16-byte accesses, reductions in a fixed order, launches.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/base/tensor_view.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

/// Exact.
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Rounded once, to nearest even.
template <class To, class From>
__device__ To convert_element(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, float> || std::is_same_v<To, double>) {
    return static_cast<To>(widen(value));
  } else if constexpr (std::is_same_v<To, __half>) {
    if constexpr (std::is_same_v<From, double>) {
      return __double2half(value);
    } else {
      return __float2half_rn(widen(value));
    }
  } else {
    if constexpr (std::is_same_v<From, double>) {
      return __double2bfloat16(value);
    } else {
      return __float2bfloat16_rn(widen(value));
    }
  }
}

/// body.operator()<T>() with the device's type of a compute dtype. @pre f32, f16 or bf16
template <class Body>
void with_compute_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::f16:
      return body.template operator()<__half>();
    case DType::bf16:
      return body.template operator()<__nv_bfloat16>();
    default:
      require(false, "cuda backend: expected a compute dtype");
  }
}

/// The same for f64 as well.
template <class Body>
void with_floating_type(DType dtype, const Body& body) {
  if (dtype == DType::f64) {
    return body.template operator()<double>();
  }
  with_compute_type(dtype, body);
}

/// A matrix's rows as kernels see them.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  Rows() = default;
  template <class View>
  explicit Rows(const View& view) : data(static_cast<T*>(view.data)), stride(view.stride) {}
  __device__ T* row(std::int64_t r) const { return data + r * stride; }
};

/// Elements that are loaded and stored together.
template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T values[width];
};
template <int width, class T>
__device__ Pack<std::remove_const_t<T>, width> load_pack(T* from) {
  return *reinterpret_cast<const Pack<std::remove_const_t<T>, width>*>(from);
}
template <int width, class T>
__device__ void store_pack(T* to, const Pack<T, width>& pack) {
  *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

/// Elements of 16 bytes.
template <class T>
inline constexpr int full_width = 16 / static_cast<int>(sizeof(T));

/// Whether these, and every row of matrices, begin at a multiple of `width` elements.
template <class... Views>
bool allows_packs(int width, const Views&... views) {
  return (
      (reinterpret_cast<std::uintptr_t>(views.data) % static_cast<std::uintptr_t>(width * size_of(views.dtype)) == 0 &&
       (views.shape.size() == 1 || views.shape[0] <= 1 || views.stride % width == 0)) &&
      ...);
}

/// The reduction over the `threads` threads that share a run, in a fixed order; each of them gets it. `threads` is 32,
/// or the whole block. @pre for a whole block: every thread of it calls; the value is not needed across two calls
template <int threads, class T, class Operation>
__device__ T reduce(T value, const Operation& operation) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value = operation(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  if constexpr (threads > 32) {
    __shared__ T partial[threads / 32];
    __syncthreads();  // the last call's values have been read
    if (threadIdx.x % 32 == 0) {
      partial[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < threads / 32; ++warp) {
      value = operation(value, partial[warp]);
    }
  }
  return value;
}

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
/// NaN is passed over.
struct Maximum {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Minimum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// One element to shared memory while the thread goes on, zero unless it exists; there after
/// wait_for_background_copies().
/// @pre 4, 8 or 16 bytes
template <class T>
__device__ void copy_in_background(T* to, const T* from, bool exists = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(sizeof(T)),
               "r"(exists ? static_cast<int>(sizeof(T)) : 0)
               : "memory");
}
/// The same with 16 bytes that pass the L1 cache by.
template <class T>
__device__ void stream_in_background(T* to, const T* from) {
  static_assert(sizeof(T) == 16);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
/// Waits for this thread's copies: other threads see them after a barrier.
__device__ inline void wait_for_background_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
/// The thread's copies since the last call become a group. Groups end in order.
__device__ inline void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most `pending` of this thread's groups are not done.
template <int pending>
__device__ void wait_for_groups_of_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Barriers of whole warps, by number (0 is that of __syncthreads()): a phase ends when so many threads have come. Those
/// that only arrive do not wait, and what they wrote before is seen by those that do.
__device__ inline void wait_with_others(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ inline void arrive_for_others(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

inline unsigned int grid_size(std::int64_t blocks, std::int64_t most = (std::int64_t{1} << 31) - 1) {
  return static_cast<unsigned int>(std::max<std::int64_t>(1, std::min(blocks, most)));
}
constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Lets blocks of a kernel ask for up to `bytes` of shared memory, as many of them as a multiprocessor's has room for.
template <class Kernel>
void give_shared_memory(Kernel kernel, std::int64_t bytes) {
  constexpr auto doing = "giving a kernel its shared memory";
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), doing);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        doing);
}

template <class Body>
__global__ void for_elements_kernel(std::int64_t rows, std::int64_t cols, Body body) {
  const std::int64_t row_step = std::int64_t{gridDim.y} * blockDim.y;
  const std::int64_t col_step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t r = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < rows; r += row_step) {
    for (std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c < cols; c += col_step) {
      body(r, c);
    }
  }
}

/// body(row, column) on the device for every element of [rows, cols]; `body` is a struct with a const operator().
template <class Body>
void for_elements(CudaStream& stream, std::int64_t rows, std::int64_t cols, const Body& body) {
  if (rows == 0 || cols == 0) {
    return;
  }
  constexpr unsigned int threads = 256;
  unsigned int across = 1;
  while (across < threads && across < cols) {
    across *= 2;
  }
  const dim3 block(across, threads / across);
  const dim3 grid(grid_size(divide_up(cols, block.x)), grid_size(divide_up(rows, block.y), 65535));
  for_elements_kernel<<<grid, block, 0, stream.stream()>>>(rows, cols, body);
}

/// Makes the stream fail with describe(finding) when one of `values` lies outside [low, high): the first one's position
/// and value.
void expect_inside(CudaStream& stream, ConstTensorView<std::int32_t, 1> values, std::int64_t low, std::int64_t high,
                   std::function<std::string(const Finding&)> describe);

}  // namespace gptqd::cuda
