#pragma once
/// @file What the user asks of the quantizer, and how work is cut into pieces of fixed shape.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "kernels/grid.hpp"

namespace gptqd::gptq {

/// The order in which columns are quantized.
enum class ActOrder : std::uint8_t {
  none,   ///< natural order; a group's grid comes from the updated weights at its first column
  fixed,  ///< "static": descending diag(H); grids are found from W in the original order first, so g_idx stays trivial
  dynamic,  ///< descending diag(H); groups are runs of columns in that order, g_idx tells which
};

enum class Method : std::uint8_t { gptq, rtn, obq };

/// Clip::hessian keeps [group, group] floats of every group: longer groups are refused.
inline constexpr std::int64_t longest_hessian_clip_group = 1024;

/// Settings that decide the codes of a layer.
struct QuantSpec {
  int bits = 4;                   ///< 2, 3, 4, 8
  std::int64_t group_size = 128;  ///< columns a group; -1: the whole row
  bool symmetric = true;
  ActOrder act_order = ActOrder::fixed;
  Clip clip = Clip::mse;
  Method method = Method::gptq;
  double damping = 0.01;  ///< λ, relative to the mean of diag(H); (0, 1]
  /// Every choice as the published code makes it (docs/numerics.md): its symmetric quirk, dead columns zeroed with
  /// H_ii = dead_diagonal, which counts in the mean that damping uses.
  bool reference = false;
  double dead_diagonal = 1.0;  ///< only with reference; in units of the plain sum XᵀX (N/2 for N windows)
  ScaleFormat scale_format = ScaleFormat::f16;
  DType solver = DType::f32;  ///< f32 or f64: arithmetic of the factorization and the solve

  GridSpec grid() const;
  /// Columns a group, for a layer of `cols` columns.
  std::int64_t group_columns(std::int64_t cols) const { return group_size < 0 ? cols : group_size; }
  std::int64_t groups(std::int64_t cols) const { return cols / group_columns(cols); }
  /// The order that columns take: only GPTQ's result depends on it.
  ActOrder order() const { return method == Method::gptq ? act_order : ActOrder::none; }
  /// True where grids are found while solving, from the updated weights.
  bool dynamic_grids() const;
};

/// @throws Error (usage) naming the option, what it got and what is possible
void validate(const QuantSpec& spec);

nlohmann::json to_json(const QuantSpec& spec);

std::string_view name_of(ActOrder order);
std::string_view name_of(Method method);
std::string_view name_of(Clip clip);
/// @throws Error (usage) naming the option and the possible words
ActOrder act_order_from_name(std::string_view name);
Method method_from_name(std::string_view name);
Clip clip_from_name(std::string_view name);

/// The clip that gives the lowest perplexity where it can be had (docs/results.md): hessian for groups of at most
/// longest_hessian_clip_group columns, mse for longer ones, and for round-to-nearest, which then needs no calibration.
Clip default_clip(Method method, std::int64_t group_size);

/// How a layer is cut, the same at every number of ranks and threads (the cut decides the last bits), and which H are
/// not spread over the ranks, which changes no bit.
struct Partition {
  int leaves = 8;                    ///< leaves of the summation tree over calibration samples; a power of two
  std::int64_t panel_columns = 768;  ///< width of H's column panels, a multiple of the solve's block
  std::int64_t row_tile = 64;        ///< rows of W one tile of the solve holds
  std::int64_t whole_columns = 0;    ///< an H of at most so many columns is on every rank: not in to_json()

  nlohmann::json to_json() const;
};

/// @throws Error (usage) naming the option, what it got and what is possible
void validate(const Partition& partition);

}  // namespace gptqd::gptq
