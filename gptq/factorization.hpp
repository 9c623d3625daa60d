#pragma once
/// @file H + D = L Lᵀ over all ranks, with the ladder of dampings (docs/numerics.md).
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "gptq/panels.hpp"
#include "gptq/quant_spec.hpp"
#include "gptq/team.hpp"

namespace gptqd::gptq {

/// The diagonal that is factored.
struct DampedDiagonal {
  std::vector<double> values;  ///< [n] of H + D, as the panels' dtype holds them
  std::vector<double> extra;   ///< [n] D = values − diag(H)
};

/// Columns with H_ii = 0: inputs that were never active.
std::vector<std::int32_t> dead_columns(std::span<const double> diagonal);

/// Dead columns get the mean of the live diagonal (1 if all are dead), then λ times that mean is added to every column.
/// With spec.reference they get spec.dead_diagonal, and it counts in the mean.
/// @param diagonal  [n] of H, any order
DampedDiagonal damp(std::span<const double> diagonal, double damping, const QuantSpec& spec);

/// L, if some damping made H positive definite.
struct Factorization {
  std::optional<Panels> factor;  ///< lower triangular, columns in factor order, of dtype spec.solver
  DampedDiagonal diagonal;       ///< of the last attempt
  double damping = 0;            ///< λ of the last attempt
  int retries = 0;               ///< attempts beyond the first
};

/// Tries λ = spec.damping, then ten times as much, up to 1.
///
/// Right-looking over panels with look-ahead 1: the owner factors a panel and sends it; every rank updates its own
/// panels, the next one first. Works on a copy, so that H survives: H and L together take n² elements over all ranks,
/// as much as one whole H. An attempt that fails runs to its end: ranks compare notes once an attempt, not once a
/// panel. Collective, blocks the host.
/// @param diagonal  [n] of H, factor order, the same on all ranks
Factorization factorize(Team& team, const Panels& hessian, std::span<const double> diagonal, const QuantSpec& spec);

}  // namespace gptqd::gptq
