#pragma once
/// @file How sure a difference between two models' losses is, measured on the same windows.
#include <cstdint>
#include <optional>
#include <span>

namespace gptqd::pipeline {

/// Mean of d_i = b_i − a_i, with its 95 % confidence interval mean ± half_width:
/// half_width = t(0.975, n − 1) · s / √n, s² = Σ (d_i − mean)² / (n − 1)  (Student's paired t interval).
///
/// Pairing takes out what windows have in common (some are harder than others), which is most of their spread. Windows
/// count as independent.
struct PairedDifference {
  double mean = 0;
  std::optional<double> half_width;  ///< none for a single window
  std::int64_t windows = 0;
};

/// @pre a.size() == b.size() > 0
PairedDifference paired_difference(std::span<const double> a, std::span<const double> b);

}  // namespace gptqd::pipeline
