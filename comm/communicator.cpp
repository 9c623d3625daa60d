#include "comm/communicator.hpp"

#include "comm/nccl/nccl_communicator.hpp"

namespace gptqd::comm {

void Pending::wait() {
  if (impl_) {
    impl_->wait();
    impl_.reset();
  }
}

Pending Communicator::send(Stream& stream, const void* data, std::int64_t bytes, int peer, std::string_view what) {
  const Outgoing message{.peer = peer, .data = data, .bytes = bytes};
  return exchange(stream, {&message, 1}, {}, what);
}

Pending Communicator::receive(Stream& stream, void* data, std::int64_t bytes, int peer, std::string_view what) {
  const Incoming message{.peer = peer, .data = data, .bytes = bytes};
  return exchange(stream, {}, {&message, 1}, what);
}

void Communicator::all_gather(Stream& stream, std::span<const Gathered> arrays, std::string_view what) {
  for (const auto& array : arrays) {
    require(array.parts.size() == static_cast<std::size_t>(size()),
            fmt::format("{}: {} parts for {} ranks", what, array.parts.size(), size()));
  }
  gather_parts(stream, arrays, what);
}

std::unique_ptr<Communicator> make_communicator(Group& group, Backend& backend) {
  return backend.memory_kind() == MemoryKind::cuda ? make_nccl_communicator(group, backend)
                                                   : make_mpi_communicator(group);
}

}  // namespace gptqd::comm
