#include "comm/mpi/mpi_group.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>

#include "kernels/base/error.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd::comm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int tag_of_messages = 1;
/// Messages above this many bytes are moved by the polling itself, fragment by fragment: sleeps slow them down.
constexpr std::int64_t large_bytes = 256 * 1024;
/// A low estimate of what transports move, for how long a wait polls without sleeping. Longer waits are for a rank that
/// is not ready: it may need this core.
constexpr std::int64_t bytes_per_microsecond = 500;
constexpr std::chrono::milliseconds longest_spin{50};

Patience patience_for(std::int64_t bytes) {
  if (bytes <= large_bytes) {
    return {};
  }
  const std::chrono::microseconds transfer{bytes / bytes_per_microsecond};
  return {.spin = std::min<std::chrono::microseconds>(transfer, longest_spin),
          .longest_sleep = std::chrono::microseconds{200},
          .burst = std::chrono::microseconds{50}};
}

/// How long a request that nobody waited for may hold up its destructor.
constexpr std::chrono::seconds abandon_time{1};
constexpr std::chrono::milliseconds abandon_poll{1};

/// One message as a sequence of MPI requests, a piece each.
class MpiRequest final : public Request::Impl {
 public:
  enum class Direction { send, receive, collective };

  MpiRequest(std::shared_ptr<JobState> job, Direction direction, std::string what)
      : job_(std::move(job)), direction_(direction), what_(std::move(what)) {}
  MpiRequest(const MpiRequest&) = delete;
  MpiRequest& operator=(const MpiRequest&) = delete;
  ~MpiRequest() override { abandon(); }

  /// Cuts `data` into pieces and starts each by `start(piece, request)`; an empty message is one empty piece.
  template <class Byte, class Start>
  void start(std::span<Byte> data, std::int64_t piece_bytes, Start start) {
    bytes_ = std::ssize(data);
    const auto longest = static_cast<std::size_t>(piece_bytes);
    do {
      const auto piece = data.first(std::min(longest, data.size()));
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(start(piece, &request), what_);
      pieces_.push_back({.request = request, .bytes = static_cast<int>(piece.size())});
      data = data.subspan(piece.size());
    } while (!data.empty());
  }

  void wait() override {
    comm::wait_until(*job_, what_, patience_for(bytes_), [&] { return advance(); });
  }

 private:
  struct Piece {
    MPI_Request request;
    int bytes;
  };

  /// True when all pieces are there; each one is a tick.
  bool advance() {
    while (finished_ < pieces_.size()) {
      auto& piece = pieces_[finished_];
      int flag = 0;
      MPI_Status status;
      check_mpi(MPI_Test(&piece.request, &flag, &status), what_);
      if (flag == 0) {
        return false;
      }
      ++finished_;
      job_->progress().tick();
      if (direction_ == Direction::receive) {
        int got = 0;
        check_mpi(MPI_Get_count(&status, MPI_BYTE, &got), what_);
        require(got == piece.bytes, fmt::format("{}: got a message of {} bytes, expected {}", what_, got, piece.bytes));
      }
    }
    return true;
  }

  void abandon() noexcept {
    if (job_->closed()) {
      return;
    }
    const auto deadline = Clock::now() + abandon_time;
    for (; finished_ < pieces_.size(); ++finished_) {
      auto& request = pieces_[finished_].request;
      int flag = 0;
      while (MPI_Test(&request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && flag == 0 && !job_->failing() &&
             Clock::now() < deadline) {
        std::this_thread::sleep_for(abandon_poll);
      }
      // MPI allows neither cancelling nor freeing a collective, and cancelling a send is not to be relied on.
      if (flag == 0 && direction_ == Direction::receive && request != MPI_REQUEST_NULL) {
        MPI_Cancel(&request);
        MPI_Request_free(&request);
      }
    }
  }

  std::shared_ptr<JobState> job_;
  Direction direction_;
  std::string what_;
  std::int64_t bytes_ = 0;
  std::vector<Piece> pieces_;
  std::size_t finished_ = 0;
};

std::vector<int> translate_to_world(MPI_Comm comm, int size) {
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Group world = MPI_GROUP_NULL;
  check_mpi(MPI_Comm_group(comm, &group), "naming the ranks of a group");
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &world), "naming the ranks of a group");
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<int> world_ranks(ranks.size());
  check_mpi(MPI_Group_translate_ranks(group, size, ranks.data(), world, world_ranks.data()),
            "naming the ranks of a group");
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return world_ranks;
}

}  // namespace

void check_mpi(int code, std::string_view doing) {
  if (code == MPI_SUCCESS) {
    return;
  }
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(ErrorKind::internal,
              fmt::format("{}: MPI reports {}", doing, std::string_view(text, static_cast<std::size_t>(length))));
}

CommHandle::CommHandle(std::shared_ptr<JobState> job, MPI_Comm comm) : job_(std::move(job)), comm_(comm) {
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "setting up a communicator");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "setting up a communicator");
  check_mpi(MPI_Comm_size(comm_, &size_), "setting up a communicator");
}

CommHandle::~CommHandle() {
  if (!job_->closed() && !job_->failing()) {
    MPI_Comm_free(&comm_);
  }
}

MpiGroup::MpiGroup(std::shared_ptr<JobState> job, MPI_Comm comm)
    : job_(job), comm_(std::move(job), comm), world_ranks_(translate_to_world(comm, comm_.size())) {}

void MpiGroup::require_member(int rank, std::string_view what) const {
  require(rank >= 0 && rank < size(), fmt::format("{}: rank {} of a group of {}", what, rank, size()));
}

void MpiGroup::barrier(std::string_view what) {
  if (size() == 1) {
    return;
  }
  fault_point("comm.collective");
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(comm_.get(), &request), what);
  comm::wait_until(*job_, fmt::format("{}, a barrier", what), Patience{}, [&] {
    int flag = 0;
    check_mpi(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), what);
    return flag != 0;
  });
}

std::vector<std::int64_t> MpiGroup::all_gather(std::int64_t value, std::string_view what) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(size()), value);
  if (size() == 1) {
    return values;
  }
  fault_point("comm.collective");
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values.data(), 1, MPI_INT64_T, comm_.get(), &request),
            what);
  comm::wait_until(*job_, fmt::format("{}, gathered from all ranks", what), Patience{}, [&] {
    int flag = 0;
    check_mpi(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), what);
    return flag != 0;
  });
  return values;
}

Request MpiGroup::isend(std::span<const std::byte> data, int peer, std::string_view what) {
  require_member(peer, what);
  fault_point("comm.send");
  auto request = std::make_unique<MpiRequest>(job_, MpiRequest::Direction::send,
                                              fmt::format("{}, sent to rank {}", what, world_rank(peer)));
  request->start(data, max_message_bytes(), [&](std::span<const std::byte> piece, MPI_Request* started) {
    return MPI_Isend(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, peer, tag_of_messages, comm_.get(),
                     started);
  });
  return Request(std::move(request));
}

Request MpiGroup::ireceive(std::span<std::byte> data, int peer, std::string_view what) {
  require_member(peer, what);
  fault_point("comm.receive");
  auto request = std::make_unique<MpiRequest>(job_, MpiRequest::Direction::receive,
                                              fmt::format("{}, received from rank {}", what, world_rank(peer)));
  request->start(data, max_message_bytes(), [&](std::span<std::byte> piece, MPI_Request* started) {
    return MPI_Irecv(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, peer, tag_of_messages, comm_.get(),
                     started);
  });
  return Request(std::move(request));
}

Request MpiGroup::ibroadcast(std::span<std::byte> data, int root, std::string_view what) {
  require_member(root, what);
  if (size() == 1 || data.empty()) {
    return {};
  }
  fault_point("comm.collective");
  auto request = std::make_unique<MpiRequest>(job_, MpiRequest::Direction::collective,
                                              fmt::format("{}, broadcast by rank {}", what, world_rank(root)));
  request->start(data, max_message_bytes(), [&](std::span<std::byte> piece, MPI_Request* started) {
    return MPI_Ibcast(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, root, comm_.get(), started);
  });
  return Request(std::move(request));
}

std::unique_ptr<Group> MpiGroup::split(int color, int key) {
  MPI_Comm part = MPI_COMM_NULL;
  {
    // MPI has no non-blocking split: the watchdog bounds it.
    const WaitScope scope(*job_, "splitting a group of ranks");
    check_mpi(MPI_Comm_split(comm_.get(), color, key, &part), "splitting a group of ranks");
  }
  auto group = std::make_unique<MpiGroup>(job_, part);
  group->set_max_message_bytes(max_message_bytes());
  return group;
}

void MpiGroup::wait_until(std::string_view what, const std::function<bool()>& done) {
  comm::wait_until(*job_, what, Patience{}, done);
}

}  // namespace gptqd::comm
