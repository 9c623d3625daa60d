#pragma once
/// @file The data plane between ranks: backend buffers, in order with a stream's work.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "comm/group.hpp"
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

/// An array that is gathered. Parts: one a rank, the same on all ranks, not overlapping; uneven or empty ones are fine.
struct Gathered {
  void* whole = nullptr;
  std::vector<Part> parts;
};

/// Messages of an exchange.
struct Outgoing {
  int peer = 0;
  const void* data = nullptr;
  std::int64_t bytes = 0;
};
struct Incoming {
  int peer = 0;
  void* data = nullptr;
  std::int64_t bytes = 0;
};

/// What transfers have cost one rank so far.
struct TransferTotals {
  std::int64_t bytes = 0;      ///< sent and received; a broadcast counts once
  double seconds = 0;          ///< that transfers were under way, waiting for the peers' side included
  double exposed_seconds = 0;  ///< of these, those in which the rank's other work stood still for them
};

/// Moves buffers of one kind of memory between the ranks of a group.
///
/// A transfer starts behind all work that is on the stream when it is called. All ranks call collective operations
/// (broadcast, all_gather) in the same order; messages between two ranks arrive in the order sent. One thread at a time
/// uses a communicator. `what` names the operation in messages.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) = 0;
  /// Messages to and from any peers, all at once. The peers' exchanges must hold their other ends, in the same order
  /// between any two ranks.
  virtual Pending exchange(Stream& stream, std::span<const Outgoing> sends, std::span<const Incoming> receives,
                           std::string_view what) = 0;
  Pending send(Stream& stream, const void* data, std::int64_t bytes, int peer, std::string_view what);
  Pending receive(Stream& stream, void* data, std::int64_t bytes, int peer, std::string_view what);

  /// Every rank's part of each array to every rank, in place, all at once.
  /// @throws Error (internal) unless each array has size() parts
  void all_gather(Stream& stream, std::span<const Gathered> arrays, std::string_view what);

  /// Of transfers that are complete.
  virtual TransferTotals totals() = 0;

 protected:
  Communicator() = default;
  /// @pre each array has size() parts
  virtual void gather_parts(Stream& stream, std::span<const Gathered> arrays, std::string_view what) = 0;
};

/// Over host memory (the CPU backend's buffers): waits for the stream, then sends. Takes ranks of its own from the
/// group, so its traffic never mixes with the group's. Collective over the group.
std::unique_ptr<Communicator> make_mpi_communicator(Group& group);

/// The communicator for a backend's buffers: over MPI for host memory, over NCCL for GPUs'. Collective over the group.
/// The group and the backend outlive it.
std::unique_ptr<Communicator> make_communicator(Group& group, Backend& backend);

}  // namespace gptqd::comm
