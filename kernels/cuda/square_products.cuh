#pragma once
/// @file Sums of squares of a matrix product's elements, on tensor cores: the products are squared and summed where
/// they arise, never stored.
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// partial[t, r] = Σ (δ·L)[r, c]² over the columns c of tile t. Squares are summed in fp64, or a few neighbours in fp32
/// before.
///
/// L is zero above its diagonal and is not read above the tiles on it. What a row of δ gets depends on that row alone.
struct SquareProducts {
  /// Depth and width are multiples of it, zeros where the matrices end.
  static constexpr std::int64_t padding = 128;

  std::int64_t rows = 0;
  std::int64_t depth = 0;
  std::int64_t width = 0;
  __half* delta = nullptr;    ///< [rows, depth], memory for whole tiles of rows
  __half* factor = nullptr;   ///< [depth, width]
  double* partial = nullptr;  ///< [⌈width / tile's cols⌉, rows]
  int* taken = nullptr;       ///< zero; used up
};

/// How the result is divided.
struct SquareTiles {
  std::int64_t rows = 0;  ///< of a tile
  std::int64_t cols = 0;
  std::int64_t at_once = 0;  ///< tiles that the GPU computes at the same time
};

/// By mma.sync, on any GPU from sm_80 on.
SquareTiles square_tiles_mma(const CudaStream& stream);
void square_products_mma(CudaStream& stream, const SquareProducts& args);

/// By Hopper's warpgroup-level matrix instructions.
bool allows_square_products_wgmma(const CudaStream& stream);
SquareTiles square_tiles_wgmma(const CudaStream& stream);
void square_products_wgmma(CudaStream& stream, const SquareProducts& args);

}  // namespace gptqd::cuda
