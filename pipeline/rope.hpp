#pragma once
/// @file The angles of rotary position embeddings.
#include <vector>

#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// cos and sin for RotaryArgs.
struct RopeTables {
  std::int64_t positions = 0;
  std::int64_t half = 0;   ///< rope.width / 2
  std::vector<float> cos;  ///< [positions, half], row-major
  std::vector<float> sin;
};

/// f_i, i < width / 2, in radians a position, for windows of `seqlen` tokens. With θ_i = theta^(−2i / width):
///
/// - standard: θ_i;  linear: θ_i / factor
/// - dynamic: theta grows by ((factor·S / L) − (factor − 1))^(width / (width − 2)), S = max(seqlen, L), L =
///   original_positions
/// - llama3: λ = 2π / θ_i; θ_i where λ < L / high; θ_i / factor where λ > L / low; between them
///   (1 − s)·θ_i / factor + s·θ_i with s = (L / λ − low) / (high − low)
/// - yarn (arXiv:2309.00071): θ_i / factor and θ_i mixed by a ramp over i between the dimensions that turn beta_fast
/// and
///   beta_slow times in L positions
/// - longrope (arXiv:2402.13753): θ_i / short_factors[i], or long_factors[i] where seqlen > L
std::vector<double> rope_frequencies(const RopeSpec& rope, std::int64_t seqlen);

/// cos(p·f_i)·amplitude and sin(p·f_i)·amplitude for the positions p < seqlen; the frequencies are rounded to fp32
/// first, as published.
RopeTables rope_tables(const RopeSpec& rope, std::int64_t seqlen);

}  // namespace gptqd::pipeline
