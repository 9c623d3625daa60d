#include "tests/reference/factor.hpp"

#include <cmath>

namespace gptqd::reference {

std::optional<Matrix<double>> cholesky(const Matrix<double>& h) {
  const auto n = h.rows;
  Matrix<double> l(n, n);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) {
      double sum = h(r, c);
      for (std::int64_t k = 0; k < c; ++k) {
        sum -= l(r, k) * l(c, k);
      }
      if (r != c) {
        l(r, c) = sum / l(c, c);
      } else if (sum > 0 && std::isfinite(sum)) {
        l(r, c) = std::sqrt(sum);
      } else {
        return std::nullopt;
      }
    }
  }
  return l;
}

Matrix<double> inverse_of_lower(const Matrix<double>& l) {
  const auto n = l.rows;
  Matrix<double> result(n, n);
  for (std::int64_t c = 0; c < n; ++c) {
    result(c, c) = 1 / l(c, c);
    for (std::int64_t r = c + 1; r < n; ++r) {
      double sum = 0;
      for (std::int64_t k = c; k < r; ++k) {
        sum += l(r, k) * result(k, c);
      }
      result(r, c) = -sum / l(r, r);
    }
  }
  return result;
}

Matrix<double> inverse(const Matrix<double>& h) {
  const auto l = cholesky(h);
  require(l.has_value(), "reference inverse: the matrix is not positive definite");
  const auto r = inverse_of_lower(*l);
  return product(transposed(r), r);
}

}  // namespace gptqd::reference
