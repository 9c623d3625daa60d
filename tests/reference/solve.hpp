#pragma once
/// @file The solve of GPTQ given the factor, one column after another, fp64, without blocks.
#include <cstdint>
#include <vector>

#include "kernels/grid.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

struct Solution {
  Matrix<std::uint8_t> codes;
  Matrix<double> delta;          ///< Q(W) − W
  std::vector<double> row_loss;  ///< ‖delta·L‖², row by row
};

/// Columns from the last to the first: W̃_a = W_a − (delta·L)_a/L_aa over the columns behind a, q = Q(W̃_a).
///
/// With `dynamic` a group's grid is found at its last column from W̃ = W_g − (delta·L)_g·L_gg⁻¹, and written to scales
/// and zeros.
Solution solve(const Matrix<double>& factor, const Matrix<double>& weights, const GridSpec& spec,
               const std::vector<std::int32_t>& group, const std::vector<std::int32_t>& member, bool dynamic,
               Matrix<float>& scales, Matrix<std::uint8_t>& zeros);

}  // namespace gptqd::reference
