#pragma once
/// @file The tensors of one decoder block in one piece of memory, as files hold them.
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/packed_linear.hpp"
#include "pipeline/fill_buffer.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// One tensor within the image.
struct BlockTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  ///< bytes, a multiple of 256
  std::int64_t bytes() const;
};

/// All tensors of a block as they lie in one piece of memory, ready to be broadcast, and what fills it.
///
/// A linear is there as `X.weight` in the checkpoint's type, or packed as `X.packed` (u32, row-packed), `X.scales` (f32
/// [rows, groups]), `X.zeros` (u8 [rows, groups]) and `X.g_idx` (i32 [cols]).
struct BlockImage {
  std::vector<BlockTensor> tensors;
  std::vector<FillPiece> pieces;
  std::int64_t bytes = 0;

  /// The tensors' names, types, shapes and places as text, and back.
  std::string layout() const;
  static std::vector<BlockTensor> parse_layout(const std::string& layout);
};

/// Gives a module packed, or nothing where it is to be read as a float weight.
using PackedSource = std::function<std::optional<io::PackedLinear>(const std::string& module)>;

/// Lays a block out; its pieces read from `tensors` and throw Error (input) for a NaN or infinity in a weight, naming
/// the tensor, row and column.
/// @param tensors  outlives the image
BlockImage block_image(const io::CheckpointReader& tensors, const BlockSpec& block, const PackedSource& packed);

/// What reads a tensor to `offset` of a buffer, in pieces that throw Error (input) as above.
/// @param tensors, info  outlive the pieces
std::vector<FillPiece> pieces_of(const io::CheckpointReader& tensors, const io::TensorInfo& info, std::int64_t offset);

}  // namespace gptqd::pipeline
