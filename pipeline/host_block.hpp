#pragma once
/// @file The tensors of one decoder block in host memory, as files hold them.
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint_reader.hpp"
#include "io/packed_linear.hpp"
#include "pipeline/model_spec.hpp"

namespace gptqd::pipeline {

/// One tensor within HostBlock::data.
struct BlockTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  ///< bytes, a multiple of 256
  std::int64_t bytes() const;
};

/// Leaves new elements as they are: gigabytes that are read over need no zeros first.
template <class T>
struct UninitializedAllocator : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = UninitializedAllocator<U>;
  };
  void construct(T*) noexcept {}
};
using HostBytes = std::vector<std::byte, UninitializedAllocator<std::byte>>;

/// All tensors of a block in one piece of memory, ready to be broadcast.
///
/// A linear is there as `X.weight` in the checkpoint's type, or packed as `X.packed` (u32, row-packed), `X.scales` (f32
/// [rows, groups]), `X.zeros` (u8 [rows, groups]) and `X.g_idx` (i32 [cols]).
struct HostBlock {
  std::vector<BlockTensor> tensors;
  HostBytes data;

  /// The tensors' names, types, shapes and places as text, and back.
  std::string layout() const;
  static std::vector<BlockTensor> parse_layout(const std::string& layout);
};

/// Gives a module packed, or nothing where it is to be read as a float weight.
using PackedSource = std::function<std::optional<io::PackedLinear>(const std::string& module)>;

/// Reads a block, several pieces at a time.
/// @param tick  called once a piece, from several threads
/// @throws Error (input) for a NaN or infinity in a weight, naming the tensor, row and column
HostBlock read_host_block(const io::CheckpointReader& tensors, const BlockSpec& block, const PackedSource& packed,
                          const std::function<void()>& tick);

/// Throws Error (input) naming the first element of a floating tensor that is not finite.
/// @param data   a part of the tensor
/// @param first  the element that the part begins with
void require_finite(std::string_view name, DType dtype, const std::vector<std::int64_t>& shape,
                    std::span<const std::byte> data, std::int64_t first = 0);

}  // namespace gptqd::pipeline
