#include "comm/nccl/nccl_communicator.hpp"

#include <nccl.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::comm {

namespace {

/// Longest wait for all ranks to come to the start of NCCL: their host work before it differs.
constexpr std::chrono::seconds start_limit{120};

[[noreturn]] void fail(ncclResult_t result, ncclComm_t comm, std::string_view doing) {
  throw Error(ErrorKind::internal, fmt::format("NCCL: while {}: {}: {}; set NCCL_DEBUG=INFO to see its log", doing,
                                               ncclGetErrorString(result), ncclGetLastError(comm)));
}

struct NcclTraits {
  using Handle = ncclComm_t;
  static constexpr Handle none = nullptr;
  /// Without the other ranks, which may be gone.
  static void destroy(Handle handle) noexcept { ncclCommAbort(handle); }
};

class NcclPending final : public Pending::Impl {
 public:
  NcclPending(Stream& stream, Event done) : stream_(stream), done_(std::move(done)) {}
  void wait() override { stream_.wait(done_); }

 private:
  Stream& stream_;
  Event done_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Group& group, Backend& backend)
      : rank_(group.rank()), size_(group.size()), own_stream_(backend.create_stream()) {
    if (size_ > 1) {
      start(group);
    }
  }

  ~NcclCommunicator() override {
    if (comm_) {
      // An orderly end where nothing has failed; the handle's owner aborts what is left.
      ncclResult_t state = ncclSuccess;
      if (ncclCommGetAsyncError(comm_.get(), &state) == ncclSuccess && state == ncclSuccess) {
        ncclCommFinalize(comm_.get());
      }
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) override {
    return transfer(stream, bytes, what, [&](cudaStream_t on) {
      return ncclBroadcast(data, data, static_cast<std::size_t>(bytes), ncclInt8, root, comm_.get(), on);
    });
  }

  Pending send(Stream& stream, const void* data, std::int64_t bytes, int peer, std::string_view what) override {
    return transfer(stream, bytes, what, [&](cudaStream_t on) {
      return ncclSend(data, static_cast<std::size_t>(bytes), ncclInt8, peer, comm_.get(), on);
    });
  }

  Pending receive(Stream& stream, void* data, std::int64_t bytes, int peer, std::string_view what) override {
    return transfer(stream, bytes, what, [&](cudaStream_t on) {
      return ncclRecv(data, static_cast<std::size_t>(bytes), ncclInt8, peer, comm_.get(), on);
    });
  }

  void all_gather(Stream& stream, void* whole, std::span<const Part> parts, std::string_view what) override {
    require(parts.size() == static_cast<std::size_t>(size_),
            fmt::format("{}: {} parts for {} ranks", what, parts.size(), size_));
    std::int64_t bytes = 0;
    for (const auto& part : parts) {
      bytes += part.bytes;
    }
    transfer(stream, bytes, what, [&](cudaStream_t on) {
      ncclResult_t result = ncclGroupStart();
      for (int r = 0; r < size_ && result == ncclSuccess; ++r) {
        const auto& part = parts[static_cast<std::size_t>(r)];
        auto* data = static_cast<std::byte*>(whole) + part.offset_bytes;
        if (part.bytes > 0) {
          result = ncclBroadcast(data, data, static_cast<std::size_t>(part.bytes), ncclInt8, r, comm_.get(), on);
        }
      }
      const ncclResult_t end = ncclGroupEnd();
      return result == ncclSuccess || result == ncclInProgress ? end : result;
    }).wait();
  }

 protected:
  void copy(Stream& stream, AnyView<2> dst, ConstAnyView<2> src) override {
    auto& on = cuda_stream(stream);
    const auto pitch = [](const auto& view) { return static_cast<std::size_t>(view.stride * size_of(view.dtype)); };
    on.begin();
    cuda::check(cudaMemcpy2DAsync(dst.data, pitch(dst), src.data, pitch(src),
                                  static_cast<std::size_t>(src.cols() * size_of(src.dtype)),
                                  static_cast<std::size_t>(src.rows()), cudaMemcpyDeviceToDevice, on.stream()),
                "copying a partial sum");
    on.end("copying a partial sum");
  }

 private:
  static cuda::CudaStream& cuda_stream(Stream& stream) {
    auto* own = dynamic_cast<cuda::CudaStream*>(&stream);
    require(own != nullptr, "NCCL: got a stream of another backend; use one of the CUDA backend");
    return *own;
  }

  void start(Group& group) {
    auto& on = cuda_stream(*own_stream_);
    on.gpu().activate();
    refuse_shared_gpus(group, on.gpu());
    ncclUniqueId id{};
    if (rank_ == 0) {
      if (const auto result = ncclGetUniqueId(&id); result != ncclSuccess) {
        fail(result, nullptr, "making an identifier");
      }
    }
    id = group.broadcast_value(id, 0, "NCCL's identifier");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    const auto result = ncclCommInitRankConfig(&comm, size_, id, rank_, &config);
    comm_ = UniqueHandle<NcclTraits>(comm);
    settle(result, "starting");
  }

  /// NCCL would hang or fail with a message that names no cause.
  static void refuse_shared_gpus(Group& group, const cuda::Gpu& gpu) {
    const auto all = group.all_gather_bytes(std::as_bytes(std::span(gpu.properties().uuid.bytes)), "GPU identifiers");
    for (std::size_t a = 0; a < all.size(); ++a) {
      for (std::size_t b = a + 1; b < all.size(); ++b) {
        if (all[a] == all[b]) {
          throw Error(ErrorKind::usage,
                      fmt::format("ranks {} and {} have the same GPU, {}; start one rank for each GPU (mpirun -np N, "
                                  "--gpus-per-node with --gpu-bind=none under SLURM)",
                                  a, b, gpu.properties().name));
        }
      }
    }
  }

  /// Waits until NCCL, which does not block, has taken the call in.
  void settle(ncclResult_t result, std::string_view doing) {
    const auto deadline = std::chrono::steady_clock::now() + start_limit;
    while (result == ncclInProgress) {
      if (std::chrono::steady_clock::now() > deadline) {
        throw Error(ErrorKind::internal, fmt::format("NCCL: {} took more than {} s; is a rank or its network gone? Set "
                                                     "NCCL_DEBUG=INFO to see its log",
                                                     doing, start_limit.count()));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (const auto asked = ncclCommGetAsyncError(comm_.get(), &result); asked != ncclSuccess) {
        result = asked;
      }
    }
    if (result != ncclSuccess) {
      fail(result, comm_.get(), doing);
    }
  }

  /// Runs `enqueue` on the communicator's stream, behind the work that is on `stream` now.
  template <class Enqueue>
  Pending transfer(Stream& stream, std::int64_t bytes, std::string_view what, const Enqueue& enqueue) {
    require(bytes >= 0, "message of a negative number of bytes");
    if (size_ == 1 || bytes == 0) {
      return Pending();
    }
    auto& on = cuda_stream(*own_stream_);
    on.wait(cuda_stream(stream).record());
    on.begin();
    settle(enqueue(on.stream()), what);
    on.end(what);
    return Pending(std::make_unique<NcclPending>(stream, on.record()));
  }

  int rank_;
  int size_;
  std::unique_ptr<Stream> own_stream_;
  UniqueHandle<NcclTraits> comm_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Group& group, Backend& backend) {
  require(backend.memory_kind() == MemoryKind::cuda, "NCCL: got a backend whose memory is the host's");
  return std::make_unique<NcclCommunicator>(group, backend);
}

}  // namespace gptqd::comm
