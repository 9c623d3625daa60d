#pragma once
/// @file The control plane between ranks: messages in host memory, none of whose waits is unbounded.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace gptqd::comm {

/// An operation under way. Its memory has to stay in place until wait() returns.
///
/// Dropping a request that was not waited for (an exception passes) gives up after a second at most: a receive is
/// withdrawn, anything else is left to the library.
class Request {
 public:
  class Impl {
   public:
    virtual ~Impl() = default;
    virtual void wait() = 0;
  };
  Request() = default;
  explicit Request(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

  /// Blocks until the operation is complete; returns at once for an empty or finished request.
  /// @throws Error when the job is ending, or when the message had another length than the one asked for
  void wait();

 private:
  std::unique_ptr<Impl> impl_;
};

/// A set of ranks that exchange host memory.
///
/// `what` names the operation in messages: "weights of block 3". Collective operations (barrier, the broadcasts and
/// gathers, split) have to be called by all ranks of the group in the same order. Between two ranks messages arrive in
/// the order in which they were sent. One thread at a time uses a group; split one off for another thread.
///
/// Every wait polls, sleeps between polls, counts as waiting for the watchdog (see World), and throws Error when the
/// job is ending. Messages above max_message_bytes() travel in pieces; each finished piece and operation is a tick of
/// the World's progress.
class Group {
 public:
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Rank in the World of a rank of this group.
  virtual int world_rank(int rank) const = 0;

  virtual void barrier(std::string_view what) = 0;
  /// One number of each rank, in rank order. Collective.
  virtual std::vector<std::int64_t> all_gather(std::int64_t value, std::string_view what) = 0;
  virtual Request isend(std::span<const std::byte> data, int peer, std::string_view what) = 0;
  virtual Request ireceive(std::span<std::byte> data, int peer, std::string_view what) = 0;
  virtual Request ibroadcast(std::span<std::byte> data, int root, std::string_view what) = 0;
  /// The ranks with the same `color` make a group, ordered by `key`, then by rank. Collective.
  virtual std::unique_ptr<Group> split(int color, int key) = 0;
  /// Polls `done` until it is true, as this group's own waits do: for what ranks wait for by other means. Thread-safe.
  /// @throws Error when the job is ending; what `done` throws
  virtual void wait_until(std::string_view what, const std::function<bool()>& done) = 0;

  void send(std::span<const std::byte> data, int peer, std::string_view what);
  void receive(std::span<std::byte> data, int peer, std::string_view what);
  /// All ranks pass spans of the same length; the root's content replaces the others'.
  void broadcast(std::span<std::byte> data, int root, std::string_view what);
  /// The root's bytes on every rank; what the other ranks pass is ignored.
  std::vector<std::byte> broadcast_bytes(std::vector<std::byte> data_at_root, int root, std::string_view what);
  std::string broadcast_string(std::string text_at_root, int root, std::string_view what);
  template <class T>
  requires(std::is_trivially_copyable_v<T>) T broadcast_value(T value_at_root, int root, std::string_view what) {
    broadcast(std::as_writable_bytes(std::span(&value_at_root, 1)), root, what);
    return value_at_root;
  }
  /// The bytes of each rank, in rank order; lengths may differ. Collective.
  std::vector<std::vector<std::byte>> all_gather_bytes(std::span<const std::byte> data, std::string_view what);
  /// The largest of all ranks' numbers: how ranks agree that one of them wants to stop. Collective.
  std::int64_t all_max(std::int64_t value, std::string_view what);

  /// Longest single message; the same on all ranks of the group. Groups split off inherit it.
  std::int64_t max_message_bytes() const { return max_message_bytes_; }
  /// @throws Error (internal) unless 1 <= bytes <= 1 GiB
  void set_max_message_bytes(std::int64_t bytes);

 protected:
  Group() = default;

 private:
  std::int64_t max_message_bytes_ = std::int64_t{1} << 30;
};

}  // namespace gptqd::comm
