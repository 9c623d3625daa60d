#include <chrono>
#include <vector>

#include "comm/communicator.hpp"

namespace gptqd::comm {

namespace {

using Clock = std::chrono::steady_clock;

/// The host waits for transfers, and with it everything that the rank would do: all of the time is exposed.
class Stopwatch {
 public:
  explicit Stopwatch(TransferTotals& totals) : totals_(totals) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    totals_.seconds += seconds;
    totals_.exposed_seconds += seconds;
  }

 private:
  TransferTotals& totals_;
  Clock::time_point start_ = Clock::now();
};

class MpiPending final : public Pending::Impl {
 public:
  MpiPending(std::vector<Request> requests, std::shared_ptr<TransferTotals> totals)
      : requests_(std::move(requests)), totals_(std::move(totals)) {}
  void wait() override {
    const Stopwatch watch(*totals_);
    for (auto& request : requests_) {
      request.wait();
    }
  }

 private:
  std::vector<Request> requests_;
  std::shared_ptr<TransferTotals> totals_;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::unique_ptr<Group> group) : group_(std::move(group)) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }

  Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) override {
    stream.synchronize();
    std::vector<Request> requests;
    requests.push_back(group_->ibroadcast(span_of(data, bytes), root, what));
    return pending(std::move(requests), size() > 1 ? bytes : 0);
  }

  Pending exchange(Stream& stream, std::span<const Outgoing> sends, std::span<const Incoming> receives,
                   std::string_view what) override {
    stream.synchronize();
    std::vector<Request> requests;
    std::int64_t bytes = 0;
    for (const auto& message : receives) {
      requests.push_back(group_->ireceive(span_of(message.data, message.bytes), message.peer, what));
      bytes += message.bytes;
    }
    for (const auto& message : sends) {
      requests.push_back(
          group_->isend({static_cast<const std::byte*>(message.data), checked(message.bytes)}, message.peer, what));
      bytes += message.bytes;
    }
    return pending(std::move(requests), bytes);
  }

  TransferTotals totals() override { return *totals_; }

 protected:
  void gather_parts(Stream& stream, std::span<const Gathered> arrays, std::string_view what) override {
    stream.synchronize();
    std::vector<Request> requests;
    std::int64_t bytes = 0;
    for (const auto& array : arrays) {
      for (int r = 0; r < size(); ++r) {
        const auto& part = array.parts[static_cast<std::size_t>(r)];
        requests.push_back(
            group_->ibroadcast(span_of(static_cast<std::byte*>(array.whole) + part.offset_bytes, part.bytes), r, what));
        bytes += size() > 1 ? part.bytes : 0;
      }
    }
    pending(std::move(requests), bytes).wait();
  }

 private:
  static std::size_t checked(std::int64_t bytes) {
    require(bytes >= 0, "message of a negative number of bytes");
    return static_cast<std::size_t>(bytes);
  }
  static std::span<std::byte> span_of(void* data, std::int64_t bytes) {
    return {static_cast<std::byte*>(data), checked(bytes)};
  }
  Pending pending(std::vector<Request> requests, std::int64_t bytes) {
    totals_->bytes += bytes;
    return Pending(std::make_unique<MpiPending>(std::move(requests), totals_));
  }

  std::unique_ptr<Group> group_;
  std::shared_ptr<TransferTotals> totals_ = std::make_shared<TransferTotals>();
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(Group& group) {
  return std::make_unique<MpiCommunicator>(group.split(0, group.rank()));
}

}  // namespace gptqd::comm
