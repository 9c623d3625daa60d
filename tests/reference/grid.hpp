#pragma once
/// @file Naive quantizer: grids, candidates, rounding. T is the arithmetic of scale, zero and code; errors are fp64.
#include <functional>
#include <vector>

#include "kernels/grid.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

struct Grid {
  double scale = 1;
  int zero = 0;
  bool operator==(const Grid&) const = default;
};

/// The number of `bits` significant bits nearest to x > 0, ties to even; below 2^lowest its spacing stays constant.
double round_to_bits(double x, int bits, int lowest);

double stored_scale(double scale, ScaleFormat format);

/// clamp(rint(w/s) + z, 0, 2^bits − 1)
template <class T>
int code_of(T weight, const Grid& grid, int bits);

/// s·(q − z) − w
template <class T>
double rounding_error(T weight, const Grid& grid, int bits);

/// The grids that `spec` lets a group choose from: one, or eighty for p = 1, 0.99, ..., 0.21.
template <class T>
std::vector<Grid> candidates(const GridSpec& spec, const std::vector<T>& weights);

/// What clipping minimizes: Σ|e|^2.4, or e·H_gg·eᵀ with Clip::hessian.
template <class T>
double clip_error(const GridSpec& spec, const std::vector<T>& weights, const Grid& grid, const Matrix<double>* block);

/// The first candidate with the smallest clip_error.
template <class T>
Grid find_grid(const GridSpec& spec, const std::vector<T>& weights, const Matrix<double>* block = nullptr);

}  // namespace gptqd::reference
