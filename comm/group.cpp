#include "comm/group.hpp"

#include <algorithm>
#include <utility>

#include "kernels/base/error.hpp"

namespace gptqd::comm {

void Request::wait() {
  if (impl_) {
    impl_->wait();
    impl_.reset();
  }
}

void Group::send(std::span<const std::byte> data, int peer, std::string_view what) { isend(data, peer, what).wait(); }

void Group::receive(std::span<std::byte> data, int peer, std::string_view what) { ireceive(data, peer, what).wait(); }

void Group::broadcast(std::span<std::byte> data, int root, std::string_view what) {
  ibroadcast(data, root, what).wait();
}

std::vector<std::byte> Group::broadcast_bytes(std::vector<std::byte> data_at_root, int root, std::string_view what) {
  const auto bytes = broadcast_value(data_at_root.size(), root, what);
  data_at_root.resize(bytes);
  broadcast(data_at_root, root, what);
  return data_at_root;
}

std::string Group::broadcast_string(std::string text_at_root, int root, std::string_view what) {
  const auto bytes = broadcast_value(text_at_root.size(), root, what);
  text_at_root.resize(bytes);
  broadcast(std::as_writable_bytes(std::span(text_at_root)), root, what);
  return text_at_root;
}

std::vector<std::vector<std::byte>> Group::all_gather_bytes(std::span<const std::byte> data, std::string_view what) {
  const auto lengths = all_gather(static_cast<std::int64_t>(data.size()), what);
  std::vector<std::vector<std::byte>> all(lengths.size());
  std::vector<Request> requests;
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (static_cast<int>(r) == rank()) {
      all[r].assign(data.begin(), data.end());
    } else {
      all[r].resize(static_cast<std::size_t>(lengths[r]));
    }
    requests.push_back(ibroadcast(all[r], static_cast<int>(r), what));
  }
  for (auto& request : requests) {
    request.wait();
  }
  return all;
}

std::int64_t Group::all_max(std::int64_t value, std::string_view what) {
  const auto values = all_gather(value, what);
  return *std::max_element(values.begin(), values.end());
}

void Group::set_max_message_bytes(std::int64_t bytes) {
  // Pieces are counted in an int by MPI.
  require(bytes >= 1 && bytes <= std::int64_t{1} << 30,
          fmt::format("longest message: expected 1 to {} bytes, got {}", std::int64_t{1} << 30, bytes));
  max_message_bytes_ = bytes;
}

}  // namespace gptqd::comm
