#pragma once
/// @file The search for one group's grid, on the CPU. T = float or double: the arithmetic of ranges, scales and codes.
#include <cstdint>
#include <vector>

#include "kernels/cpu/vectorized.hpp"
#include "kernels/grid.hpp"

namespace gptqd::cpu {

struct Grid {
  float scale = 1;
  std::uint8_t zero = 0;
};

/// Candidates that Clip::mse and Clip::hessian compare: p = 1 − i/100 for i = 0 ... 79.
inline constexpr int clip_candidates = 80;

/// `scale` rounded to nearest even in its stored form, kept inside the range that the form holds.
float stored_scale(float scale, ScaleFormat format);

/// Finds grids one after another; owns the memory that takes. Not thread-safe: one a thread.
template <class T>
class GridSearch {
 public:
  /// @param level  the instruction set, which changes no bit
  explicit GridSearch(const GridSpec& spec, vectorized::Level level = vectorized::best_level());

  /// The grid of `size` weights (kernels/grid.hpp has the formulas).
  /// @param block  [size, size], row stride `stride`: H_gg; used with Clip::hessian, else null
  Grid find(const T* weights, std::int64_t size, const T* block, std::int64_t stride);

 private:
  struct Range {
    T low;
    T high;
  };
  struct Candidate {
    Grid grid;
    T scale;
    T zero;
  };

  Range range_of(const T* weights, std::int64_t size) const;
  Candidate candidate(Range range, int index) const;
  double power_error(const T* weights, std::int64_t size, const Candidate& candidate, double enough) const;
  Grid best_by_power(const T* weights, std::int64_t size, Range range) const;
  Grid best_by_hessian(const T* weights, std::int64_t size, Range range, const T* block, std::int64_t stride);

  GridSpec spec_;
  vectorized::Level level_;
  T highest_;             // 2^bits − 1
  std::vector<T> delta_;  // [clip_candidates, size], of Clip::hessian
  std::vector<T> product_;
};

extern template class GridSearch<float>;
extern template class GridSearch<double>;

}  // namespace gptqd::cpu
