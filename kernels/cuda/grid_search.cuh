#pragma once
/// @file The search for grids: what its kernels share, and what the solve calls for grids that it finds on the way.
#include "kernels/cuda/group_lists.cuh"
#include "kernels/cuda/quantizer.cuh"

namespace gptqd::cuda {

/// Bytes of device memory that find_grids() takes.
std::int64_t find_grids_bytes(const FindGridsArgs& args);
/// Enqueues the search of FindGridsArgs, as an operation or inside one. `operation` names it in messages.
void find_grids(CudaStream& stream, const FindGridsArgs& args, std::string_view operation, void* memory);

/// What the kernels of the search are given.
template <class T>
struct GridProblem {
  GridSpec spec;
  Rows<const T> weights;
  std::int64_t rows;
  std::int64_t groups;
  GroupLists lists;
  Rows<float> scales;
  Rows<std::uint8_t> zeros;

  __device__ T highest() const { return static_cast<T>((1 << spec.bits) - 1); }
  __device__ void store(std::int64_t row, std::int64_t group, const GridCandidate<T>& grid) const {
    scales.row(row)[group] = grid.scale;
    zeros.row(row)[group] = static_cast<std::uint8_t>(static_cast<std::int32_t>(grid.zero));
  }
};

/// A candidate and its error. The smaller error wins, of equal ones the lower index; NaN counts as infinite.
struct ScoredCandidate {
  double error = HUGE_VAL;
  int index = 0;

  ScoredCandidate() = default;
  __device__ ScoredCandidate(double error_, int index_) : error(error_ == error_ ? error_ : HUGE_VAL), index(index_) {}
};
struct BetterCandidate {
  __device__ ScoredCandidate operator()(const ScoredCandidate& a, const ScoredCandidate& b) const {
    return b.error < a.error || (b.error == a.error && b.index < a.index) ? b : a;
  }
};
/// The best of the candidates of a warp's threads that are multiples of `apart`, a power of two, apart; each of them
/// gets it.
__device__ inline ScoredCandidate best_of_warp(ScoredCandidate best, int apart = 1) {
  for (int distance = 16; distance >= apart; distance /= 2) {
    best = BetterCandidate{}(
        best, {__shfl_xor_sync(0xffffffffu, best.error, distance), __shfl_xor_sync(0xffffffffu, best.index, distance)});
  }
  return best;
}

/// Clip::hessian, whose blocks are [groups, size, size] (grid_hessian.cu). memory: hessian_search_bytes().
std::int64_t hessian_search_bytes(const FindGridsArgs& args);
void search_by_hessian(CudaStream& stream, const GridProblem<float>& problem, ConstTensorView<float, 3> blocks,
                       void* memory);
void search_by_hessian(CudaStream& stream, const GridProblem<double>& problem, ConstTensorView<float, 3> blocks,
                       void* memory);

}  // namespace gptqd::cuda
