#include "comm/communicator.hpp"

#include <utility>
#include <vector>

#include "comm/nccl/nccl_communicator.hpp"

namespace gptqd::comm {

void Pending::wait() {
  if (impl_) {
    impl_->wait();
    impl_.reset();
  }
}

void Communicator::reduce_tree(Stream& stream, TreeSum& local, int owner, AnyView<2> result, std::string_view what) {
  require(owner >= 0 && owner < size(), fmt::format("sum of {}: owner {} of {} ranks", what, owner, size()));
  const auto nodes_of_rank = [&](int r) { return nodes_of(leaves_of(r, size(), local.leaves())); };
  require(local.nodes() == nodes_of_rank(rank()),
          fmt::format("sum of {}: rank {} of {} has to push exactly its own of the {} leaves", what, rank(), size(),
                      local.leaves()));
  auto own = local.take_nodes();

  if (rank() != owner) {
    std::vector<Pending> sends;
    for (const auto& node : own) {
      const auto matrix = local.view(node);
      sends.push_back(send(stream, matrix.data, matrix.bytes(), owner, what));
    }
    for (auto& pending : sends) {
      pending.wait();
    }
    for (auto& node : own) {
      local.recycle(std::move(node.buffer));
    }
    return;
  }

  require(result.dtype == local.dtype() && result.shape == local.shape(),
          fmt::format("sum of {}: the result is {} {}, the partial sums are {} {}", what, name_of(result.dtype),
                      to_string(result.shape), name_of(local.dtype()), to_string(local.shape())));
  for (int r = 0; r < size(); ++r) {
    if (r == owner) {
      for (auto& node : own) {
        local.push(stream, std::move(node));
      }
      continue;
    }
    for (const auto node : nodes_of_rank(r)) {
      const auto matrix = local.next();
      receive(stream, matrix.data, matrix.bytes(), r, what).wait();
      local.push(stream, node);
    }
  }
  auto root = local.take_nodes();
  require(root.size() == 1, "sum over the tree: more than one node is left");
  copy(stream, result, local.view(root.front()));
  local.recycle(std::move(root.front().buffer));
}

std::unique_ptr<Communicator> make_communicator(Group& group, Backend& backend) {
  return backend.memory_kind() == MemoryKind::cuda ? make_nccl_communicator(group, backend)
                                                   : make_mpi_communicator(group);
}

}  // namespace gptqd::comm
