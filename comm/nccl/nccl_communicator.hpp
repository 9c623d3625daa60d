#pragma once
/// @file Communicator over GPU memory.
#include <memory>

#include "comm/communicator.hpp"

namespace gptqd::comm {

/// Over the GPUs' memory with NCCL, one GPU a rank. Collective over the group.
/// @throws Error (not_built) in a build without CUDA
std::unique_ptr<Communicator> make_nccl_communicator(Group& group);

}  // namespace gptqd::comm
