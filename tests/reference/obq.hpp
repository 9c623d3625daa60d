#pragma once
/// @file Optimal Brain Quantization (arXiv:2208.11580), naive: the inverse is computed anew after each weight.
#include <cstdint>
#include <vector>

#include "tests/reference/matrix.hpp"

namespace gptqd::reference {

/// Codes of one row. @param hessian damped; scales and zeros for each column
std::vector<std::uint8_t> obq(const Matrix<double>& hessian, std::vector<double> weights, int bits,
                              const std::vector<double>& scales, const std::vector<int>& zeros);

}  // namespace gptqd::reference
