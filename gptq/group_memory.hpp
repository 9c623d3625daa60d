#pragma once
/// @file How much device memory quantize_group() takes.
#include <cstdint>

#include "gptq/panels.hpp"
#include "gptq/quant_spec.hpp"

namespace gptqd::gptq {

/// Linears that share one input, and the ranks that quantize them together.
struct GroupShape {
  std::int64_t rows = 0;  ///< of all linears together
  std::int64_t columns = 0;
  int ranks = 1;
  int rank = 0;
};

/// Bytes of one rank.
struct GroupMemory {
  std::int64_t hessian = 0;   ///< H's panels on this rank
  std::int64_t factor = 0;    ///< L's panels on this rank, and two on their way where it is not whole
  std::int64_t rows = 0;      ///< own rows of W, of their errors, and of the errors of rounding: each so much
  std::int64_t codes = 0;     ///< own rows' codes, a byte each, with what fits their types
  std::int64_t results = 0;   ///< packed codes, scales, zeros of all rows
  std::int64_t blocks = 0;    ///< H's blocks of groups (Clip::hessian)
  bool has_baseline = false;  ///< the errors of rounding are kept

  /// At its most behind the Hessian: H is there while its factor is made, the errors of rounding afterwards.
  std::int64_t solve() const;
  /// What the sums that make H may take beside it without the Hessian's stage taking more than the solve.
  std::int64_t room() const { return solve() - hessian; }
};

/// @param calibrated  false: no Hessian
GroupMemory group_memory(const GroupShape& shape, const QuantSpec& spec, const Partition& partition, bool calibrated);

}  // namespace gptqd::gptq
