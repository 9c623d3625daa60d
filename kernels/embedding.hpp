#pragma once
/// @file Rows of a table, by token or by position.
#include "kernels/base/tensor_view.hpp"

namespace gptqd {

/// y[t] = table[ids[t]], or y[t] += table[ids[t]] with accumulate.
/// An id outside [0, table.rows) is an Error (internal) thrown by the stream: readers check ids before.
struct EmbeddingArgs {
  ConstTensorView<std::int32_t, 1> ids;  ///< [tokens]
  ConstAnyView<2> table;                 ///< [entries, d], any floating dtype
  AnyView<2> y;                          ///< [tokens, d], compute dtype
  bool accumulate = false;
};
void validate(const EmbeddingArgs& args);

}  // namespace gptqd
