#include <cstring>

#include "comm/communicator.hpp"

namespace gptqd::comm {

namespace {

class MpiPending final : public Pending::Impl {
 public:
  explicit MpiPending(Request request) : request_(std::move(request)) {}
  void wait() override { request_.wait(); }

 private:
  Request request_;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::unique_ptr<Group> group) : group_(std::move(group)) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }

  Pending broadcast(Stream& stream, void* data, std::int64_t bytes, int root, std::string_view what) override {
    stream.synchronize();
    return pending(group_->ibroadcast(span_of(data, bytes), root, what));
  }

  Pending send(Stream& stream, const void* data, std::int64_t bytes, int peer, std::string_view what) override {
    stream.synchronize();
    return pending(group_->isend({static_cast<const std::byte*>(data), checked(bytes)}, peer, what));
  }

  Pending receive(Stream& stream, void* data, std::int64_t bytes, int peer, std::string_view what) override {
    stream.synchronize();
    return pending(group_->ireceive(span_of(data, bytes), peer, what));
  }

  void all_gather(Stream& stream, void* whole, std::span<const Part> parts, std::string_view what) override {
    require(parts.size() == static_cast<std::size_t>(size()),
            fmt::format("{}: {} parts for {} ranks", what, parts.size(), size()));
    stream.synchronize();
    std::vector<Request> requests;
    for (int r = 0; r < size(); ++r) {
      const auto& part = parts[static_cast<std::size_t>(r)];
      requests.push_back(
          group_->ibroadcast(span_of(static_cast<std::byte*>(whole) + part.offset_bytes, part.bytes), r, what));
    }
    for (auto& request : requests) {
      request.wait();
    }
  }

 protected:
  void copy(Stream& stream, AnyView<2> dst, ConstAnyView<2> src) override {
    stream.synchronize();
    const auto row_bytes = static_cast<std::size_t>(src.cols() * size_of(src.dtype));
    if (row_bytes == 0) {
      return;
    }
    for (std::int64_t row = 0; row < src.rows(); ++row) {
      std::memcpy(dst.slice_rows(row, 1).data, src.slice_rows(row, 1).data, row_bytes);
    }
  }

 private:
  static std::size_t checked(std::int64_t bytes) {
    require(bytes >= 0, "message of a negative number of bytes");
    return static_cast<std::size_t>(bytes);
  }
  static std::span<std::byte> span_of(void* data, std::int64_t bytes) {
    return {static_cast<std::byte*>(data), checked(bytes)};
  }
  static Pending pending(Request request) { return Pending(std::make_unique<MpiPending>(std::move(request))); }

  std::unique_ptr<Group> group_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(Group& group) {
  return std::make_unique<MpiCommunicator>(group.split(0, group.rank()));
}

}  // namespace gptqd::comm
