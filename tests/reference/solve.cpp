#include "tests/reference/solve.hpp"

#include "tests/reference/factor.hpp"
#include "tests/reference/grid.hpp"

namespace gptqd::reference {

namespace {

/// Σ_{c > a} delta[r, c]·L[c, column], over what has been quantized when column a is the next.
double behind(const Matrix<double>& factor, const Matrix<double>& delta, std::int64_t r, std::int64_t a,
              std::int64_t column) {
  double sum = 0;
  for (std::int64_t c = a + 1; c < factor.rows; ++c) {
    sum += delta(r, c) * factor(c, column);
  }
  return sum;
}

}  // namespace

Solution solve(const Matrix<double>& factor, const Matrix<double>& weights, const GridSpec& spec,
               const std::vector<std::int32_t>& group, const std::vector<std::int32_t>& member, bool dynamic,
               Matrix<float>& scales, Matrix<std::uint8_t>& zeros) {
  const auto n = weights.cols;
  Solution result{Matrix<std::uint8_t>(weights.rows, n), Matrix<double>(weights.rows, n),
                  std::vector<double>(static_cast<std::size_t>(weights.rows))};
  const auto inverse = inverse_of_lower(factor);
  for (std::int64_t r = 0; r < weights.rows; ++r) {
    std::vector<bool> has_grid(static_cast<std::size_t>(scales.cols), !dynamic);
    for (auto a = n - 1; a >= 0; --a) {
      const auto g = group[static_cast<std::size_t>(a)];
      if (!has_grid[static_cast<std::size_t>(g)]) {
        // All columns up to a, as they would be updated now: W − T·R with T over [0, a], R = (L[0..a, 0..a])⁻¹.
        std::vector<double> values;
        for (std::int64_t m = 0; m <= a; ++m) {
          for (std::int64_t b = 0; b <= a; ++b) {
            if (group[static_cast<std::size_t>(b)] == g && member[static_cast<std::size_t>(b)] == m) {
              double value = weights(r, b);
              for (auto c = b; c <= a; ++c) {
                value -= behind(factor, result.delta, r, a, c) * inverse(c, b);
              }
              values.push_back(value);
            }
          }
        }
        const auto grid = find_grid(spec, values);
        scales(r, g) = static_cast<float>(grid.scale);
        zeros(r, g) = static_cast<std::uint8_t>(grid.zero);
        has_grid[static_cast<std::size_t>(g)] = true;
      }
      const Grid grid{static_cast<double>(scales(r, g)), zeros(r, g)};
      const double updated = weights(r, a) - behind(factor, result.delta, r, a, a) / factor(a, a);
      const int code = code_of(updated, grid, spec.bits);
      const double rounded = grid.scale * (code - grid.zero);
      result.codes(r, a) = static_cast<std::uint8_t>(code);
      result.delta(r, a) = rounded - weights(r, a);
      const double error = (updated - rounded) * factor(a, a);
      result.row_loss[static_cast<std::size_t>(r)] += error * error;
    }
  }
  return result;
}

}  // namespace gptqd::reference
