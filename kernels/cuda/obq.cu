#include <limits>

#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/quantizer.cuh"
#include "kernels/obq.hpp"

namespace gptqd::cuda {

namespace {

constexpr int obq_threads = 512;
constexpr int obq_warps = obq_threads / 32;
/// Memory for the rows that are quantized at once: each needs its own inverse.
constexpr std::int64_t most_inverse_bytes = std::int64_t{512} << 20;

constexpr std::int32_t no_column = std::numeric_limits<std::int32_t>::max();

/// A column that is left, by what quantizing it costs. Of equal costs the lowest column wins.
struct Choice {
  double cost;
  std::int32_t column;
  int place;
};
struct BetterChoice {
  __device__ Choice operator()(const Choice& a, const Choice& b) const {
    return b.cost < a.cost || (b.cost == a.cost && b.column < a.column) ? b : a;
  }
};

/// The best of the block's choices; every thread gets it.
__device__ Choice best_of_block(Choice best) {
  __shared__ Choice partial[obq_warps];
  for (int distance = 16; distance > 0; distance /= 2) {
    best = BetterChoice{}(
        best, {__shfl_xor_sync(0xffffffffu, best.cost, distance), __shfl_xor_sync(0xffffffffu, best.column, distance),
               __shfl_xor_sync(0xffffffffu, best.place, distance)});
  }
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = best;
  }
  __syncthreads();
  best = partial[0];
  for (int warp = 1; warp < obq_warps; ++warp) {
    best = BetterChoice{}(best, partial[warp]);
  }
  return best;
}

/// Blocks take rows in turn. Every operation on a weight or an entry is that of kernels/cpu/obq.cpp.
/// A group outside the scales reads those of group 0: expect_inside() reports it.
template <class T>
__global__ void __launch_bounds__(obq_threads)
    quantize_greedily(int bits, Rows<const double> inverses, Rows<const T> weights, std::int64_t rows, int n,
                      const std::int32_t* group, std::int64_t groups, Rows<const float> scales,
                      Rows<const std::uint8_t> zeros, Rows<std::uint8_t> codes, Rows<T> delta, double* memory) {
  __shared__ double left[max_obq_columns];         // weights of the columns that are left
  __shared__ double removed[max_obq_columns];      // row of the inverse
  __shared__ std::int32_t index[max_obq_columns];  // which columns these are
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const double highest = (1 << bits) - 1;
  double* const inverse = memory + std::int64_t{blockIdx.x} * n * n;
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const auto group_of = [&](std::int32_t column) {
      const std::int32_t g = group[column];
      return g >= 0 && g < groups ? g : 0;
    };
    for (int i = thread; i < n; i += obq_threads) {
      left[i] = static_cast<double>(weights.row(r)[i]);
      index[i] = i;
    }
    for (int i = warp; i < n; i += obq_warps) {
      for (int j = lane; j < n; j += 32) {
        inverse[std::int64_t{i} * n + j] = inverses.row(i)[j];
      }
    }
    __syncthreads();
    for (int count = n; count > 0; --count) {
      const auto rounded = [&](int place) {
        const std::int32_t g = group_of(index[place]);
        const auto scale = static_cast<double>(scales.row(r)[g]);
        const auto zero = static_cast<double>(zeros.row(r)[g]);
        const double code = code_of(left[place], scale, zero, highest);
        return double2{code, scale * (code - zero)};
      };
      Choice best{HUGE_VAL, no_column, 0};
      for (int p = thread; p < count; p += obq_threads) {
        const double move = rounded(p).y - left[p];
        best = BetterChoice{}(best, {move * move / inverse[std::int64_t{p} * n + p], index[p], p});
      }
      best = best_of_block(best);
      const int p = best.place;
      const double2 result = rounded(p);
      const double move = result.y - left[p];
      for (int j = thread; j < count; j += obq_threads) {
        removed[j] = inverse[std::int64_t{p} * n + j];
      }
      __syncthreads();
      const double pivot = removed[p];
      const double error = -move / pivot;
      if (thread == 0) {
        const std::int32_t column = index[p];
        codes.row(r)[column] = static_cast<std::uint8_t>(static_cast<std::int32_t>(result.x));
        delta.row(r)[column] = static_cast<T>(result.y - static_cast<double>(weights.row(r)[column]));
      }
      // The last column takes the removed one's place: its row is written there, its column moved in every row.
      const int last = count - 1;
      for (int i = warp; i < count; i += obq_warps) {
        if (i == p) {
          continue;
        }
        const double* const from = inverse + std::int64_t{i} * n;
        double* const to = inverse + std::int64_t{i == last ? p : i} * n;
        const double factor = from[p] / pivot;
        const double moved = from[last] - factor * removed[last];
        __syncwarp();
        for (int j = lane; j < last; j += 32) {
          to[j] = j == p ? moved : from[j] - factor * removed[j];
        }
      }
      __syncthreads();
      for (int j = thread; j < count; j += obq_threads) {
        left[j] -= error * removed[j];
      }
      __syncthreads();
      if (thread == 0) {
        left[p] = left[last];
        index[p] = index[last];
      }
      __syncthreads();
    }
  }
}

}  // namespace

void CudaBackend::run(Stream& stream, const ObqArgs& args) {
  enqueue(stream, "obq", [&](CudaStream& own) {
    const std::int64_t rows = args.weights.rows();
    const std::int64_t n = args.weights.cols();
    const std::int64_t groups = args.scales.cols();
    expect_inside(own, args.group, 0, groups, [groups](const Finding& found) {
      return fmt::format("obq: group[{}] = {}, expected an index in [0, {})", found.position, found.value, groups);
    });
    if (rows == 0 || n == 0 || groups == 0) {
      return;
    }
    const std::int64_t inverse_bytes = n * n * static_cast<std::int64_t>(sizeof(double));
    const std::int64_t at_once = std::min(
        {rows, most_inverse_bytes / inverse_bytes, std::int64_t{4} * own.gpu().properties().multiProcessorCount});
    auto* const memory = static_cast<double*>(own.scratch(at_once * inverse_bytes));
    const auto launch = [&]<class T>() {
      quantize_greedily<T><<<grid_size(at_once), obq_threads, 0, own.stream()>>>(
          args.bits, Rows<const double>(args.inverse), Rows<const T>(args.weights), rows, static_cast<int>(n),
          args.group.data, groups, Rows<const float>(args.scales), Rows<const std::uint8_t>(args.zeros),
          Rows<std::uint8_t>(args.codes), Rows<T>(args.delta), memory);
    };
    args.weights.dtype == DType::f64 ? launch.template operator()<double>() : launch.template operator()<float>();
  });
}

}  // namespace gptqd::cuda
