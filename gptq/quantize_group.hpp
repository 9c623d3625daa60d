#pragma once
/// @file Quantizes the linears that share one input: one Hessian, one factorization, one solve over all their rows.
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gptq/hessian.hpp"
#include "gptq/layer_record.hpp"
#include "gptq/quant_spec.hpp"
#include "gptq/row_solver.hpp"
#include "gptq/team.hpp"
#include "kernels/backend.hpp"

namespace gptqd::gptq {

/// One quantized linear on the device of every rank of the team.
struct QuantizedLinear {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t groups = 0;
  Buffer packed;  ///< u32 [rows, cols·bits/32], row-packed
  Buffer scales;  ///< f32 [rows, groups]
  Buffer zeros;   ///< u8 [rows, groups]
  Buffer g_idx;   ///< i32 [cols], original order
  LayerRecord record;

  /// weight <- dequantized, in the backend's compute dtype. Asynchronous.
  void dequantize(Backend& backend, Stream& stream, int bits, DType stored, AnyView<2> weight) const;
};

/// Seconds of wall time that the stages of quantize_group() took on this rank.
struct StageSeconds {
  double hessian = 0;  ///< the order of columns and XᵀX
  double factor = 0;
  double grids = 0;   ///< with the rounding that is the record's baseline
  double solve = 0;   ///< with the losses
  double finish = 0;  ///< packing, exchange of codes, the record
};

/// Collective over the team: every rank gets the same results, bit for bit, at every number of ranks.
///
/// The linears must have the same number of columns; their rows are solved as one matrix, tile by tile of fixed height,
/// tiles split over the ranks. H's panels live on their owners (panel k on rank k mod size); nothing of n² size is
/// whole.
/// @param hessian absent: Method::rtn without Clip::hessian only
/// @param seconds  added to, where it is given
/// @throws Error (input): a non-finite H, naming the layer and the sample; shapes that the format cannot hold
std::vector<QuantizedLinear> quantize_group(Team& team, std::span<const LinearWeight> linears,
                                            const std::optional<HessianInput>& hessian, const QuantSpec& spec,
                                            const Partition& partition, StageSeconds* seconds = nullptr);

}  // namespace gptqd::gptq
