#pragma once
/// @file The tensors that the pickle of a PyTorch file describes, found without running anything.
///
/// A pickle is a program for a stack machine that may import and call whatever Python can. This reader knows only what
/// torch.save writes for a state dict (pickle protocols 2 to 5; torch/_utils.py, torch/serialization.py): it pushes
/// constants, fills dicts, and keeps the arguments of the functions that rebuild tensors. It imports and calls nothing.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.hpp"

namespace gptqd::io {

/// Largest pickle that is read; a file with 1000 tensors has 0.2 MB. Memory stays below about 100 times its size.
inline constexpr std::int64_t max_pickle_bytes = std::int64_t{16} << 20;

/// One tensor of a state dict: a strided view into a storage. Element [i, j, ...] is number
/// offset + i·strides[0] + j·strides[1] + ... of the storage, and all of them lie inside it.
struct PickledTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< elements, one an extent, not negative
  std::int64_t offset = 0;            ///< elements
  std::string storage_key;            ///< the storage is the archive's entry data/KEY
  std::int64_t storage_bytes = 0;     ///< that the storage must have at least
};

/// The tensors in the order of the dict.
///
/// Known: _rebuild_tensor_v2 and _v3, _rebuild_parameter (with state), OrderedDict, the typed storages whose elements
/// DType knows, UntypedStorage. What is set on an OrderedDict (its _metadata) is dropped.
/// @param file_name  opens every message
/// @throws Error (input) for any other function, class or opcode (names it and its byte: nothing is ever called), a
///         damaged pickle, a root that is not a dict from names to tensors, tensors that reach outside their storage
///         or have more elements than it, and a pickle above max_pickle_bytes
std::vector<PickledTensor> unpickle_state_dict(std::span<const std::byte> pickle, std::string_view file_name);

}  // namespace gptqd::io
