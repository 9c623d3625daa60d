#pragma once
/// @file Communicator over GPU memory.
#include <memory>

#include "comm/communicator.hpp"

namespace gptqd::comm {

/// Over the GPUs' memory with NCCL, one GPU a rank. Transfers run on a stream of their own, beside the work of the
/// stream that they were called with. A group of one rank needs no NCCL and starts none. Collective over the group.
/// @param backend  a CUDA backend, which outlives the communicator
/// @throws Error (not_built) in a build without CUDA; (usage) where two ranks have the same GPU; (internal) with NCCL's
///         message
std::unique_ptr<Communicator> make_nccl_communicator(Group& group, Backend& backend);

}  // namespace gptqd::comm
