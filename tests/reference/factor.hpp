#pragma once
/// @file Naive Cholesky factorization and inverses, fp64.
#include <optional>

#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

/// L with H = L·Lᵀ, strictly upper part zero; nothing unless H is positive definite.
std::optional<Matrix<double>> cholesky(const Matrix<double>& h);

/// L⁻¹ of a lower triangular matrix.
Matrix<double> inverse_of_lower(const Matrix<double>& l);

/// H⁻¹ of a positive definite matrix.
Matrix<double> inverse(const Matrix<double>& h);

}  // namespace gptqd::reference
