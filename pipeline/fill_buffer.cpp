#include "pipeline/fill_buffer.hpp"

#include <algorithm>
#include <mutex>

#include "pipeline/run_parallel.hpp"

namespace gptqd::pipeline {

namespace {

constexpr int reading_threads = 4;

/// Pieces of page-locked memory and the way from them to the device, for several threads.
class Staging {
 public:
  Staging(Backend& backend, Stream& stream) : backend_(backend), stream_(stream) {}

  void write(std::byte* target, const FillPiece& piece) {
    Buffer memory = take();
    piece.fill({static_cast<std::byte*>(memory.data()), static_cast<std::size_t>(piece.bytes)});
    Event copied;
    {
      const std::lock_guard lock(mutex_);
      backend_.copy_to_device(stream_, target, memory.data(), piece.bytes);
      copied = stream_.record();
    }
    copied.synchronize();
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(memory));
  }

 private:
  Buffer take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      return backend_.allocate_host(fill_piece_bytes);
    }
    Buffer memory = std::move(free_.back());
    free_.pop_back();
    return memory;
  }

  Backend& backend_;
  Stream& stream_;
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

}  // namespace

void fill_buffer(Backend& backend, Stream& stream, const Buffer& target, const std::vector<FillPiece>& pieces,
                 const std::function<void()>& tick) {
  for (const auto& piece : pieces) {
    require(piece.offset >= 0 && piece.bytes >= 0 && piece.bytes <= fill_piece_bytes &&
                piece.offset + piece.bytes <= target.bytes(),
            fmt::format("filling a buffer of {} bytes: got a piece of {} at {}", target.bytes(), piece.bytes,
                        piece.offset));
  }
  const bool in_place = backend.memory_kind() == MemoryKind::host;
  Staging staging(backend, stream);
  run_parallel(std::ssize(pieces), reading_threads, [&](std::int64_t i) {
    const auto& piece = pieces[static_cast<std::size_t>(i)];
    auto* const to = static_cast<std::byte*>(target.data()) + piece.offset;
    if (in_place) {
      piece.fill({to, static_cast<std::size_t>(piece.bytes)});
    } else {
      staging.write(to, piece);
    }
    tick();
  });
}

}  // namespace gptqd::pipeline
