#pragma once
/// @file The data plane between ranks: backend buffers, in order with a stream's work.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "comm/group.hpp"
#include "comm/tree_sum.hpp"
#include "kernels/backend.hpp"

namespace gptqd::comm {

/// A transfer under way. Its memory has to stay in place, and must not be touched, until wait().
class Pending {
 public:
  class Impl {
   public:
    virtual ~Impl() = default;
    virtual void wait() = 0;
  };
  Pending() = default;
  explicit Pending(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

  /// Work enqueued on the transfer's stream from now on runs behind the transfer. May or may not block the host.
  /// @throws Error when the job is ending, or when the message had another length than the one asked for
  void wait();

 private:
  std::unique_ptr<Impl> impl_;
};

/// One rank's piece of a gathered array. May be empty.
struct Part {
  std::int64_t offset_bytes = 0;
  std::int64_t bytes = 0;
};

/// Moves buffers of one kind of memory between the ranks of a group.
///
/// A transfer starts behind all work that is on the stream when it is called. All ranks call collective operations
/// (broadcast, all_gather, reduce_tree) in the same order; messages between two ranks arrive in the order sent.
/// One thread at a time uses a communicator. `what` names the operation in messages.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) = 0;
  virtual Pending send(Stream& stream, const void* data, std::int64_t bytes, int peer, std::string_view what) = 0;
  virtual Pending receive(Stream& stream, void* data, std::int64_t bytes, int peer, std::string_view what) = 0;

  /// Every rank's part of `whole` to every rank, in place.
  /// @param parts  one a rank, the same on all ranks, not overlapping; uneven or empty ones are fine
  /// @throws Error (internal) unless parts.size() == size()
  virtual void all_gather(Stream& stream, void* whole, std::span<const Part> parts, std::string_view what) = 0;

  /// The root of the tree of all ranks' leaves, to one rank: the same bits for any number of ranks.
  ///
  /// Rank r has pushed leaves_of(r, size(), leaves) of them. The owner takes the ranks' nodes in leaf order, adding
  /// siblings as TreeSum does. Collective; afterwards `local` is empty and may be filled again.
  /// @param result  [rows, cols] of local's dtype, rows may be strided; written at the owner, ignored elsewhere
  /// @throws Error (internal) if `local` does not hold this rank's leaves, or `result` has another shape or dtype
  void reduce_tree(Stream& stream, TreeSum& local, int owner, AnyView<2> result, std::string_view what);

 protected:
  Communicator() = default;
  /// dst <- src in this communicator's kind of memory, in order with the stream.
  virtual void copy(Stream& stream, AnyView<2> dst, ConstAnyView<2> src) = 0;
};

/// Over host memory (the CPU backend's buffers): waits for the stream, then sends. Takes ranks of its own from the
/// group, so its traffic never mixes with the group's. Collective over the group.
std::unique_ptr<Communicator> make_mpi_communicator(Group& group);

/// The communicator for a backend's buffers: over MPI for host memory, over NCCL for GPUs'. Collective over the group.
/// The backend outlives it.
std::unique_ptr<Communicator> make_communicator(Group& group, Backend& backend);

}  // namespace gptqd::comm
