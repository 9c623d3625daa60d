#pragma once
/// @file The ranks that quantize together.
#include "comm/communicator.hpp"
#include "comm/group.hpp"
#include "kernels/backend.hpp"

namespace gptqd::gptq {

/// The ranks that quantize together, and this rank's place to compute.
struct Team {
  Backend& backend;
  Stream& stream;
  comm::Communicator& communicator;  ///< device data
  comm::Group& group;                ///< host data, the same ranks
  Stream* beside = nullptr;          ///< of the backend, for work that needs no other's result; null: none
};

}  // namespace gptqd::gptq
