#include "tests/reference/obq.hpp"

#include <numeric>

#include "tests/reference/factor.hpp"
#include "tests/reference/grid.hpp"

namespace gptqd::reference {

std::vector<std::uint8_t> obq(const Matrix<double>& hessian, std::vector<double> weights, int bits,
                              const std::vector<double>& scales, const std::vector<int>& zeros) {
  std::vector<std::uint8_t> codes(weights.size());
  std::vector<std::size_t> left(weights.size());
  std::iota(left.begin(), left.end(), 0);
  while (!left.empty()) {
    const auto count = static_cast<std::int64_t>(left.size());
    Matrix<double> rest(count, count);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < count; ++j) {
        rest(i, j) = hessian(static_cast<std::int64_t>(left[static_cast<std::size_t>(i)]),
                             static_cast<std::int64_t>(left[static_cast<std::size_t>(j)]));
      }
    }
    const auto inverse_of_rest = inverse(rest);
    std::int64_t best = 0;
    double least = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto a = left[static_cast<std::size_t>(i)];
      const double move = rounding_error(weights[a], Grid{scales[a], zeros[a]}, bits);
      const double cost = move * move / inverse_of_rest(i, i);
      if (i == 0 || cost < least) {
        best = i;
        least = cost;
      }
    }
    const auto a = left[static_cast<std::size_t>(best)];
    const Grid grid{scales[a], zeros[a]};
    codes[a] = static_cast<std::uint8_t>(code_of(weights[a], grid, bits));
    const double move = rounding_error(weights[a], grid, bits);
    for (std::int64_t i = 0; i < count; ++i) {
      weights[left[static_cast<std::size_t>(i)]] += move / inverse_of_rest(best, best) * inverse_of_rest(best, i);
    }
    left.erase(left.begin() + best);
  }
  return codes;
}

}  // namespace gptqd::reference
