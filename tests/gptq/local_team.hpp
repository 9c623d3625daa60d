#pragma once
/// @file A team of one rank without MPI.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/group.hpp"
#include "gptq/team.hpp"
#include "kernels/backend.hpp"

namespace gptqd::gptq::test {

class LocalGroup final : public comm::Group {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int world_rank(int) const override { return 0; }
  void barrier(std::string_view) override {}
  std::vector<std::int64_t> all_gather(std::int64_t value, std::string_view) override { return {value}; }
  comm::Request isend(std::span<const std::byte>, int, std::string_view) override { return no_peer(); }
  comm::Request ireceive(std::span<std::byte>, int, std::string_view) override { return no_peer(); }
  comm::Request ibroadcast(std::span<std::byte>, int, std::string_view) override { return {}; }
  std::unique_ptr<Group> split(int, int) override { return std::make_unique<LocalGroup>(); }
  void wait_until(std::string_view, const std::function<bool()>& done) override {
    while (!done()) {
    }
  }

 private:
  static comm::Request no_peer() { throw Error(ErrorKind::internal, "a team of one rank has no peers"); }
};

class LocalCommunicator final : public comm::Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  comm::Pending broadcast(Stream&, void*, std::int64_t, int, std::string_view) override { return {}; }
  comm::Pending exchange(Stream&, std::span<const comm::Outgoing>, std::span<const comm::Incoming>,
                         std::string_view) override {
    return {};
  }
  void gather_parts(Stream&, std::span<const comm::Gathered>, std::string_view) override {}
  comm::TransferTotals totals() override { return {}; }
};

/// A CPU backend and whatever else a Team refers to.
class LocalTeam {
 public:
  explicit LocalTeam(int threads = 2) : backend_(make_cpu_backend({.threads = threads})) {}

  Team& team() { return team_; }
  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_ = backend_->create_stream();
  LocalCommunicator communicator_;
  LocalGroup group_;
  Team team_{*backend_, *stream_, communicator_, group_};
};

/// Host values on a team's device, as a matrix.
template <class T>
class DeviceMatrix {
 public:
  DeviceMatrix(Team& team, std::int64_t rows, std::int64_t cols, const std::vector<T>& values)
      : rows_(rows),
        cols_(cols),
        buffer_(team.backend.allocate(std::max<std::int64_t>(1, rows * cols) * size_of(dtype_of<T>))) {
    team.backend.copy_to_device(team.stream, buffer_.data(), values.data(), rows * cols * size_of(dtype_of<T>));
    team.stream.synchronize();
  }
  AnyView<2> view() const { return buffer_.any_view<2>(dtype_of<T>, {rows_, cols_}); }

 private:
  std::int64_t rows_;
  std::int64_t cols_;
  Buffer buffer_;
};

template <class T>
std::vector<T> download(Team& team, const Buffer& buffer, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  team.backend.copy_to_host(team.stream, values.data(), buffer.data(), count * static_cast<std::int64_t>(sizeof(T)));
  team.stream.synchronize();
  return values;
}

}  // namespace gptqd::gptq::test
