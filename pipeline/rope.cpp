#include "pipeline/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gptqd::pipeline {

namespace {

double llama3_frequency(const RopeSpec& rope, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto positions = static_cast<double>(rope.original_positions);
  if (wavelength < positions / rope.high_frequency_factor) {
    return frequency;
  }
  if (wavelength > positions / rope.low_frequency_factor) {
    return frequency / rope.factor;
  }
  const double smooth =
      (positions / wavelength - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

/// The (fractional) dimension that turns `rotations` times within the original positions.
double yarn_dimension(const RopeSpec& rope, double rotations) {
  return static_cast<double>(rope.width) *
         std::log(static_cast<double>(rope.original_positions) / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

/// How much of the unscaled frequency each dimension keeps: 1 for the fastest, 0 for the slowest.
std::vector<double> yarn_shares(const RopeSpec& rope) {
  double low = yarn_dimension(rope, rope.beta_fast);
  double high = yarn_dimension(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.width - 1));
  if (low == high) {
    high += 0.001;
  }
  std::vector<double> shares;
  for (std::int64_t i = 0; i < rope.width / 2; ++i) {
    shares.push_back(1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
  }
  return shares;
}

}  // namespace

std::vector<double> rope_frequencies(const RopeSpec& rope, std::int64_t seqlen) {
  const auto width = static_cast<double>(rope.width);
  double theta = rope.theta;
  if (rope.kind == RopeSpec::Kind::dynamic) {
    const auto original = static_cast<double>(rope.original_positions);
    const double length = std::max(static_cast<double>(seqlen), original);
    theta *= std::pow(rope.factor * length / original - (rope.factor - 1), width / (width - 2));
  }
  const auto shares = rope.kind == RopeSpec::Kind::yarn ? yarn_shares(rope) : std::vector<double>();
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < rope.width / 2; ++i) {
    const auto index = static_cast<std::size_t>(i);
    const double frequency = std::pow(theta, -2 * static_cast<double>(i) / width);
    switch (rope.kind) {
      case RopeSpec::Kind::standard:
      case RopeSpec::Kind::dynamic:
        frequencies.push_back(frequency);
        break;
      case RopeSpec::Kind::linear:
        frequencies.push_back(frequency / rope.factor);
        break;
      case RopeSpec::Kind::llama3:
        frequencies.push_back(llama3_frequency(rope, frequency));
        break;
      case RopeSpec::Kind::yarn:
        frequencies.push_back(frequency / rope.factor * (1 - shares[index]) + frequency * shares[index]);
        break;
      case RopeSpec::Kind::longrope:
        frequencies.push_back(frequency /
                              (seqlen > rope.original_positions ? rope.long_factors : rope.short_factors).at(index));
        break;
    }
  }
  return frequencies;
}

RopeTables rope_tables(const RopeSpec& rope, std::int64_t seqlen) {
  RopeTables tables{.positions = seqlen, .half = rope.width / 2, .cos = {}, .sin = {}};
  const auto frequencies = rope_frequencies(rope, seqlen);
  for (std::int64_t p = 0; p < seqlen; ++p) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(p) * static_cast<double>(static_cast<float>(frequency));
      tables.cos.push_back(static_cast<float>(std::cos(angle) * rope.amplitude));
      tables.sin.push_back(static_cast<float>(std::sin(angle) * rope.amplitude));
    }
  }
  return tables;
}

}  // namespace gptqd::pipeline
