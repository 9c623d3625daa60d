#include "comm/nccl/nccl_communicator.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::comm {

std::unique_ptr<Communicator> make_nccl_communicator(Group&, Backend&) {
  throw Error(ErrorKind::not_built,
              "NCCL was asked for, but this gptq-dist was built without it; configure with `cmake --preset cuda` "
              "(needs CUDA 12.8 or newer and NCCL), or run on the CPU backend, which communicates over MPI");
}

}  // namespace gptqd::comm
