#include "comm/nccl/nccl_communicator.hpp"

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "comm/nccl/nccl_link.hpp"
#include "kernels/cuda/cuda_backend.hpp"

namespace gptqd::comm {

namespace {

using cuda::UniqueEvent;

UniqueEvent record_on(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreate(&event), "creating an event");
  UniqueEvent owner(event);
  cuda::check(cudaEventRecord(event, stream), "recording an event");
  return owner;
}

cuda::CudaStream& cuda_stream(Stream& stream) {
  auto* own = dynamic_cast<cuda::CudaStream*>(&stream);
  require(own != nullptr, "NCCL: got a stream of another backend; use one of the CUDA backend");
  return *own;
}

cuda::CudaBackend& cuda_backend(Backend& backend) {
  auto* own = dynamic_cast<cuda::CudaBackend*>(&backend);
  require(own != nullptr, "NCCL: got a backend whose memory is the host's");
  return *own;
}

/// Sums the time between pairs of events, as the GPU passes them.
class EventClock {
 public:
  void add(std::shared_ptr<const EventPair> pair) { open_.push_back(std::move(pair)); }
  /// Of the pairs that are passed.
  double seconds() {
    while (!open_.empty() && has_passed(open_.front()->end)) {
      float milliseconds = 0;
      cuda::check(cudaEventElapsedTime(&milliseconds, open_.front()->begin.get(), open_.front()->end.get()),
                  "timing transfers");
      seconds_ += static_cast<double>(milliseconds) / 1e3;
      open_.pop_front();
    }
    return seconds_;
  }

 private:
  std::deque<std::shared_ptr<const EventPair>> open_;
  double seconds_ = 0;
};

class NcclPending final : public Pending::Impl {
 public:
  NcclPending(cuda::CudaStream& stream, Event done, std::shared_ptr<const Transfer> transfer,
              std::shared_ptr<EventClock> exposed)
      : stream_(stream), done_(std::move(done)), transfer_(std::move(transfer)), exposed_(std::move(exposed)) {}

  void wait() override {
    stream_.gpu().activate();
    if (has_passed(transfer_->span.end)) {
      stream_.wait(done_);  // at no cost; it brings the transfer's failure, if it had one
      return;
    }
    auto stop = std::make_shared<EventPair>();
    stop->begin = record_on(stream_.stream());
    stream_.wait(done_);
    stop->end = record_on(stream_.stream());
    exposed_->add(std::move(stop));
  }

 private:
  cuda::CudaStream& stream_;
  Event done_;
  std::shared_ptr<const Transfer> transfer_;
  std::shared_ptr<EventClock> exposed_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Group& group, Backend& backend)
      : rank_(group.rank()), size_(group.size()), stream_(cuda_backend(backend).create_urgent_stream()) {
    if (size_ > 1) {
      refuse_shared_gpus(group);
      link_ = std::make_unique<NcclLink>(group, stream_->gpu());
      meet_all_peers(group, backend);
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) override {
    return transfer(stream, bytes, what, [&](ncclComm_t comm, cudaStream_t on) {
      return ncclBroadcast(data, data, count(bytes), ncclInt8, root, comm, on);
    });
  }

  Pending exchange(Stream& stream, std::span<const Outgoing> sends, std::span<const Incoming> receives,
                   std::string_view what) override {
    std::int64_t total = 0;
    for (const auto& message : sends) {
      total += require_message(message.bytes, message.peer, what);
    }
    for (const auto& message : receives) {
      total += require_message(message.bytes, message.peer, what);
    }
    return transfer(stream, total, what, [&](ncclComm_t comm, cudaStream_t on) {
      return in_group([&] {
        ncclResult_t result = ncclSuccess;
        for (const auto& message : sends) {
          result = first_error(result, ncclSend(message.data, count(message.bytes), ncclInt8, message.peer, comm, on));
        }
        for (const auto& message : receives) {
          result = first_error(result, ncclRecv(message.data, count(message.bytes), ncclInt8, message.peer, comm, on));
        }
        return result;
      });
    });
  }

  TransferTotals totals() override {
    return {.bytes = bytes_, .seconds = under_way_.seconds(), .exposed_seconds = exposed_->seconds()};
  }

 protected:
  void gather_parts(Stream& stream, std::span<const Gathered> arrays, std::string_view what) override {
    std::int64_t total = 0;
    for (const auto& array : arrays) {
      for (const auto& part : array.parts) {
        total += require_message(part.bytes, 0, what);
      }
    }
    transfer(stream, total, what, [&](ncclComm_t comm, cudaStream_t on) {
      return in_group([&] {
        ncclResult_t result = ncclSuccess;
        for (const auto& array : arrays) {
          for (int r = 0; r < size_; ++r) {
            const auto& part = array.parts[static_cast<std::size_t>(r)];
            auto* const data = static_cast<std::byte*>(array.whole) + part.offset_bytes;
            if (part.bytes > 0) {
              result = first_error(result, ncclBroadcast(data, data, count(part.bytes), ncclInt8, r, comm, on));
            }
          }
        }
        return result;
      });
    }).wait();
  }

 private:
  static std::size_t count(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }
  static bool is_error(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }
  static ncclResult_t first_error(ncclResult_t before, ncclResult_t now) { return is_error(before) ? before : now; }

  std::int64_t require_message(std::int64_t bytes, int peer, std::string_view what) const {
    require(bytes >= 0, fmt::format("{}: message of a negative number of bytes", what));
    require(peer >= 0 && peer < size_, fmt::format("{}: rank {} of a group of {}", what, peer, size_));
    return bytes;
  }

  template <class Calls>
  static ncclResult_t in_group(const Calls& calls) {
    if (const auto begun = ncclGroupStart(); begun != ncclSuccess) {
      return begun;
    }
    const ncclResult_t result = calls();
    return first_error(result, ncclGroupEnd());
  }

  /// NCCL would hang, or fail with a message that names no cause.
  void refuse_shared_gpus(Group& group) const {
    const auto& properties = stream_->gpu().properties();
    const auto all = group.all_gather_bytes(std::as_bytes(std::span(properties.uuid.bytes)), "GPU identifiers");
    for (std::size_t a = 0; a < all.size(); ++a) {
      for (std::size_t b = a + 1; b < all.size(); ++b) {
        if (all[a] == all[b]) {
          throw Error(ErrorKind::usage,
                      fmt::format("ranks {} and {} have the same GPU, {}; start one rank for each GPU (mpirun -np N, "
                                  "--gpus-per-node with --gpu-bind=none under SLURM)",
                                  group.world_rank(static_cast<int>(a)), group.world_rank(static_cast<int>(b)),
                                  properties.name));
        }
      }
    }
  }

  /// Makes the connections of all pairs now: NCCL makes them at first use, which would cost seconds in the midst of the
  /// work, on this rank or on another, and what cannot be connected is better learned at the start.
  void meet_all_peers(Group& group, Backend& backend) {
    constexpr std::int64_t bytes = 4096;
    const Buffer memory = backend.allocate(bytes * (size_ + 1));
    auto* const data = static_cast<std::byte*>(memory.data());
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) {
        sends.push_back({.peer = peer, .data = data + size_ * bytes, .bytes = bytes});
        receives.push_back({.peer = peer, .data = data + peer * bytes, .bytes = bytes});
      }
    }
    constexpr auto what = "meeting all peers";
    backend.fill_zero(*stream_, memory.data(), memory.bytes());
    exchange(*stream_, sends, receives, what);
    for (int root = 0; root < size_; ++root) {
      broadcast(*stream_, data + root * bytes, bytes, root, what);
    }
    const auto met = record_on(stream_->stream());
    group.wait_until("meeting all peers over NCCL", [&] {
      link_->throw_failure();
      return has_passed(met);
    });
    stream_->synchronize();
    under_way_ = {};
    *exposed_ = {};
    bytes_ = 0;
  }

  /// Runs `enqueue` on the communicator's stream, behind the work that is on `stream` now.
  template <class Enqueue>
  Pending transfer(Stream& stream, std::int64_t bytes, std::string_view what, const Enqueue& enqueue) {
    require(bytes >= 0, fmt::format("{}: message of a negative number of bytes", what));
    if (size_ == 1 || bytes == 0) {
      return Pending();
    }
    auto& user = cuda_stream(stream);
    if (&user != stream_.get()) {
      stream_->wait(user.record());
    }
    stream_->begin();
    const auto transfer = std::make_shared<Transfer>();
    transfer->what = what;
    transfer->span.begin = record_on(stream_->stream());
    link_->call(what, [&](ncclComm_t comm) { return enqueue(comm, stream_->stream()); });
    transfer->span.end = record_on(stream_->stream());
    stream_->when_passed(link_->failure_check());
    stream_->end(what);
    link_->watch(transfer);
    under_way_.add({transfer, &transfer->span});
    bytes_ += bytes;
    return Pending(std::make_unique<NcclPending>(user, stream_->record(), transfer, exposed_));
  }

  int rank_;
  int size_;
  std::unique_ptr<cuda::CudaStream> stream_;
  std::unique_ptr<NcclLink> link_;  // goes before the stream, which may hold what only its end releases
  std::int64_t bytes_ = 0;
  EventClock under_way_;
  std::shared_ptr<EventClock> exposed_ = std::make_shared<EventClock>();
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Group& group, Backend& backend) {
  require(backend.memory_kind() == MemoryKind::cuda, "NCCL: got a backend whose memory is the host's");
  return std::make_unique<NcclCommunicator>(group, backend);
}

}  // namespace gptqd::comm
