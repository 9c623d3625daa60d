#pragma once
/// @file The forward operations as their formulas say: single-threaded, in fp64, without tiles.
#include <cstdint>
#include <vector>

#include "kernels/activation.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

/// x [tokens, in] · weightᵀ [in, out] + bias [out] (empty: none).
Matrix<double> linear(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias);

/// Σ |x|·|weight| + |bias| for each element of linear(): rounding errors are a multiple of it.
Matrix<double> linear_magnitude(const Matrix<float>& x, const Matrix<float>& weight, const std::vector<float>& bias);

Matrix<double> layer_norm(const Matrix<float>& x, const std::vector<float>& weight, const std::vector<float>& bias,
                          double epsilon);

/// Over each run of weight.size() columns.
Matrix<double> rms_norm(const Matrix<float>& x, const std::vector<float>& weight, double epsilon);

/// The first 2·cos.cols columns of each head turned by the angles of the row's position in its sample.
Matrix<double> rotary(const Matrix<float>& x, const Matrix<float>& cos, const Matrix<float>& sin,
                      std::int64_t tokens_per_sample, std::int64_t head_dim);

double activate(Activation activation, double x);
Matrix<double> gated_activation(const Matrix<float>& gate, const Matrix<float>& up, Activation activation);

struct AttentionShape {
  std::int64_t tokens_per_sample = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  double scale = 1.0;
  std::vector<float> alibi_slopes{};  ///< empty: none
  std::int64_t window = 0;            ///< 0: all
};
Matrix<double> attention(const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                         const AttentionShape& shape);

std::vector<double> cross_entropy(const Matrix<float>& x, const Matrix<float>& head,
                                  const std::vector<std::int32_t>& targets);

}  // namespace gptqd::reference
