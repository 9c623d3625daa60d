#pragma once
/// @file A quantized linear layer in the form that shards and artifacts hold, and the packing of its codes.
///
/// One rule for every width b in {2, 3, 4, 8}: an LSB-first bit stream over 32-bit words; element i occupies the bits
/// [b·i, b·i + b) of its stream. `qweight` has one stream per column n, down K; `qzeros` one per group, along N.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/dtype.hpp"
#include "kernels/base/error.hpp"
#include "kernels/base/tensor_view.hpp"

namespace gptqd::io {

/// W[n, k] = scales[g, n] · (q[n, k] − zeros[g, n]) with g = g_idx[k]; N = rows = out_features, K = cols = in_features.
struct PackedLinear {
  std::string name;  ///< as the tensor's name in the source, without ".weight"
  int bits = 0;
  std::int64_t group_size = -1;        ///< -1: one group
  bool sym = true;                     ///< every zero is 2^(bits-1)
  std::int64_t rows = 0;               ///< N
  std::int64_t cols = 0;               ///< K
  std::vector<std::uint32_t> qweight;  ///< [K·bits/32, N]
  std::vector<Half> scales;            ///< [G, N]
  std::vector<std::uint8_t> zeros;     ///< [G, N]
  std::vector<std::int32_t> g_idx;     ///< [K]
  nlohmann::json record;               ///< the layer's record: losses, damping, retries

  /// G: cols / group_size, or 1.
  std::int64_t groups() const { return group_size == -1 ? 1 : cols / group_size; }
};

/// Why the GPTQ format cannot hold a [rows, cols] layer, in words; nullopt when it can.
///
/// Needs bits in {2, 3, 4, 8}, cols·bits % 32 == 0, rows·bits % 32 == 0, and cols % group_size == 0 unless it is -1.
std::optional<std::string> format_obstacle(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group_size);

/// Checks every array's size, g_idx in [0, G), zeros below 2^bits (equal to 2^(bits-1) where sym), finite scales.
/// @throws Error (`kind`) naming the layer, got and expected
void validate(const PackedLinear& linear, ErrorKind kind = ErrorKind::input);

/// True when g_idx[k] == k / group_size (group_size -1: all 0): no reordering that a reader must know of.
bool is_trivial_g_idx(std::span<const std::int32_t> g_idx, std::int64_t group_size);

/// [R, C] codes to [R, C·bits/32] words, one stream per row. @pre C·bits % 32 == 0, codes < 2^bits
std::vector<std::uint32_t> pack_rows(ConstTensorView<std::uint8_t, 2> codes, int bits);
/// The inverse: [rows, cols·bits/32] words to [rows, cols] codes.
std::vector<std::uint8_t> unpack_rows(std::span<const std::uint32_t> words, std::int64_t rows, std::int64_t cols,
                                      int bits);

/// Codes [N, K] to the checkpoint's [K·bits/32, N].
std::vector<std::uint32_t> pack_qweight(ConstTensorView<std::uint8_t, 2> codes, int bits);
/// The inverse: codes [N, K] with N = rows, K = cols.
std::vector<std::uint8_t> unpack_qweight(std::span<const std::uint32_t> qweight, std::int64_t rows, std::int64_t cols,
                                         int bits);

/// How a checkpoint stores zeros: v1 ("gptq") as z − 1 modulo 2^bits, v2 ("gptq_v2") as z.
enum class ZeroFormat { v1, v2 };
/// Zeros [G, N] to the checkpoint's [G, N·bits/32].
std::vector<std::uint32_t> pack_qzeros(ConstTensorView<std::uint8_t, 2> zeros, int bits, ZeroFormat format);
/// The inverse: zeros [groups, rows].
std::vector<std::uint8_t> unpack_qzeros(std::span<const std::uint32_t> qzeros, std::int64_t groups, std::int64_t rows,
                                        int bits, ZeroFormat format);

/// The transpose of a matrix of words: row-packed [N, K·bits/32] to qweight's [K·bits/32, N] and back.
std::vector<std::uint32_t> transpose_words(ConstTensorView<std::uint32_t, 2> words);

}  // namespace gptqd::io
