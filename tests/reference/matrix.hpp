#pragma once
/// @file A dense matrix in host memory and what reference implementations do with it.
#include <cstdint>
#include <vector>

#include "kernels/base/tensor_view.hpp"

namespace gptqd::reference {

/// Dense, row-major, zero at first unless a value is given.
template <class T>
struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<T> data;

  Matrix() = default;
  Matrix(std::int64_t rows_, std::int64_t cols_, T value = T{})
      : rows(rows_), cols(cols_), data(static_cast<std::size_t>(rows_ * cols_), value) {}
  T& operator()(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * cols + c)]; }
  const T& operator()(std::int64_t r, std::int64_t c) const { return data[static_cast<std::size_t>(r * cols + c)]; }
  TensorView<T, 2> view() { return {data.data(), {rows, cols}}; }
  ConstTensorView<T, 2> view() const { return {data.data(), {rows, cols}}; }
  /// Element by element.
  template <class U>
  Matrix<U> as() const {
    Matrix<U> result(rows, cols);
    for (std::size_t i = 0; i < data.size(); ++i) {
      result.data[i] = static_cast<U>(data[i]);
    }
    return result;
  }
  bool operator==(const Matrix&) const = default;
};

/// A·B.
inline Matrix<double> product(const Matrix<double>& a, const Matrix<double>& b) {
  require(a.cols == b.rows, "reference product: columns of a differ from rows of b");
  Matrix<double> result(a.rows, b.cols);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t c = 0; c < b.cols; ++c) {
        result(r, c) += a(r, k) * b(k, c);
      }
    }
  }
  return result;
}

/// Aᵀ.
template <class T>
Matrix<T> transposed(const Matrix<T>& a) {
  Matrix<T> result(a.cols, a.rows);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t c = 0; c < a.cols; ++c) {
      result(c, r) = a(r, c);
    }
  }
  return result;
}

/// Column i of the result is column order[i] of A.
template <class T>
Matrix<T> permuted_columns(const Matrix<T>& a, const std::vector<std::int32_t>& order) {
  Matrix<T> result(a.rows, static_cast<std::int64_t>(order.size()));
  for (std::int64_t r = 0; r < result.rows; ++r) {
    for (std::int64_t c = 0; c < result.cols; ++c) {
      result(r, c) = a(r, order[static_cast<std::size_t>(c)]);
    }
  }
  return result;
}

/// A[order, order].
template <class T>
Matrix<T> permuted(const Matrix<T>& a, const std::vector<std::int32_t>& order) {
  return transposed(permuted_columns(transposed(permuted_columns(a, order)), order));
}

}  // namespace gptqd::reference
