#pragma once
/// @file The forward operations as their formulas say: single-threaded, in fp64, without tiles.
#include <cstdint>
#include <vector>

#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

/// x [tokens, in] · weightᵀ [in, out] + bias [out] (empty: none).
Matrix<double> linear(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias);

/// Σ |x|·|weight| + |bias| for each element of linear(): rounding errors are a multiple of it.
Matrix<double> linear_magnitude(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias);

Matrix<double> layer_norm(const Matrix<float>& x, const std::vector<float>& weight, const std::vector<float>& bias,
                          double epsilon);

struct AttentionShape {
  std::int64_t tokens_per_sample = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  double scale = 1.0;
};
Matrix<double> attention(const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                         const AttentionShape& shape);

std::vector<double> cross_entropy(const Matrix<float>& x, const Matrix<float>& head,
                                  const std::vector<std::int32_t>& targets);

}  // namespace gptqd::reference
