#pragma once
/// @file H⁻¹, whole and on every rank: for OBQ alone, whose layers are small.
#include <span>

#include "gptq/panels.hpp"
#include "gptq/team.hpp"

namespace gptqd::gptq {

/// [n, n] f64, symmetric, columns in factor order: the inverse of H with its diagonal replaced.
///
/// Every rank computes all of it, with the same bits. Collective, blocks the host.
/// @param diagonal  [n] of H + D, factor order
/// @throws Error (input) naming `layer` if the matrix is not positive definite in f64
Buffer invert_hessian(Team& team, const Panels& hessian, std::span<const double> diagonal, std::string_view layer);

}  // namespace gptqd::gptq
