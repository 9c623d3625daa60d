#include "kernels/cpu/arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <utility>

#include "kernels/base/error.hpp"

namespace gptqd {

namespace {

constexpr std::int64_t alignment = 256;
/// Blocks from here on are worth huge pages, which must be aligned to their size.
constexpr std::int64_t huge_page = std::int64_t{2} << 20;
/// Blocks kept for reuse beyond the peak in use.
constexpr std::int64_t cache_allowance = std::int64_t{64} << 20;

/// The block size for a request: the next of eight steps a power of two, so that at most 1/8 is wasted.
std::int64_t size_class(std::int64_t bytes) {
  const std::int64_t least = std::max(bytes, alignment);
  const auto octave = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(least - 1)));
  const std::int64_t step = std::max(alignment, std::int64_t{1} << std::max(0, octave - 4));
  return (least + step - 1) / step * step;
}

std::int64_t physical_bytes() {
  return static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::shared_ptr<WorkClock::Slot> WorkClock::add_slot() {
  auto slot = std::make_shared<Slot>(idle);
  const std::lock_guard lock(mutex_);
  slots_.push_back(slot);
  return slot;
}

void WorkClock::remove_slot(const std::shared_ptr<Slot>& slot) noexcept {
  const std::lock_guard lock(mutex_);
  slots_.erase(std::remove(slots_.begin(), slots_.end(), slot), slots_.end());
}

std::uint64_t WorkClock::oldest_unfinished() const noexcept {
  const std::lock_guard lock(mutex_);
  std::uint64_t oldest = idle;
  for (const auto& slot : slots_) {
    oldest = std::min(oldest, slot->load());
  }
  return oldest;
}

class Arena::State : public std::enable_shared_from_this<Arena::State> {
 public:
  explicit State(std::shared_ptr<WorkClock> clock) : clock_(std::move(clock)), physical_bytes_(physical_bytes()) {}

  ~State() {
    // Every Buffer holds this state, so all blocks are back, and the work that used them has ended with its streams.
    collect_all();
    drop_available();
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Buffer allocate(std::int64_t bytes) {
    if (bytes < 0) {
      throw Error(ErrorKind::internal, fmt::format("arena: asked for {} bytes", bytes));
    }
    if (bytes == 0) {
      return {};
    }
    const std::lock_guard lock(mutex_);
    if (bytes > physical_bytes_) {
      throw_out_of_memory(bytes);
    }
    const std::int64_t wanted = size_class(bytes);
    collect_passed();
    Block* block = take_available(wanted);
    if (block == nullptr) {
      block = make_block(wanted, bytes);
    }
    auto state = shared_from_this();
    Buffer buffer(block->data, bytes,
                  [state = std::move(state), block](void*, std::int64_t size) { state->release(block, size); });
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return buffer;
  }

  std::int64_t bytes_in_use() const {
    const std::lock_guard lock(mutex_);
    return in_use_;
  }
  std::int64_t peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  std::int64_t bytes_cached() const {
    const std::lock_guard lock(mutex_);
    return available_bytes_ + waiting_bytes_;
  }

 private:
  struct Block {
    void* data = nullptr;
    std::int64_t size = 0;
    std::uint64_t released = 0;  // the clock's time
    Block* next = nullptr;
  };

  // Takes no memory, so that a release cannot fail.
  void release(Block* block, std::int64_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    in_use_ -= bytes;
    waiting_bytes_ += block->size;
    block->released = clock_->now();
    block->next = nullptr;
    (last_waiting_ == nullptr ? first_waiting_ : last_waiting_->next) = block;
    last_waiting_ = block;
  }

  void collect_passed() {
    if (first_waiting_ == nullptr) {
      return;
    }
    const std::uint64_t oldest = clock_->oldest_unfinished();
    while (first_waiting_ != nullptr && first_waiting_->released < oldest) {
      collect_first();
    }
  }
  void collect_all() {
    while (first_waiting_ != nullptr) {
      collect_first();
    }
  }
  void collect_first() {
    Block* block = first_waiting_;
    Block*& list = available_[block->size];  // may throw: before anything has changed
    first_waiting_ = block->next;
    if (first_waiting_ == nullptr) {
      last_waiting_ = nullptr;
    }
    block->next = list;
    list = block;
    waiting_bytes_ -= block->size;
    available_bytes_ += block->size;
  }

  Block* take_available(std::int64_t size) {
    const auto found = available_.find(size);
    if (found == available_.end() || found->second == nullptr) {
      return nullptr;
    }
    Block* block = std::exchange(found->second, found->second->next);
    available_bytes_ -= size;
    return block;
  }

  Block* make_block(std::int64_t size, std::int64_t asked) {
    if (available_bytes_ + size > peak_ + cache_allowance || held_bytes_ + size > physical_bytes_) {
      drop_available();
    }
    if (held_bytes_ + size > physical_bytes_) {
      throw_out_of_memory(asked);
    }
    const std::int64_t boundary = size >= 2 * huge_page ? huge_page : alignment;
    const auto length = static_cast<std::size_t>((size + boundary - 1) / boundary * boundary);
    auto block = std::make_unique<Block>();
    block->size = size;
    block->data = std::aligned_alloc(static_cast<std::size_t>(boundary), length);
    if (block->data == nullptr) {
      drop_available();
      block->data = std::aligned_alloc(static_cast<std::size_t>(boundary), length);
    }
    if (block->data == nullptr) {
      throw_out_of_memory(asked);
    }
    if (boundary == huge_page) {
      madvise(block->data, length, MADV_HUGEPAGE);  // an optimization: its failure changes nothing
    }
    held_bytes_ += size;
    return block.release();
  }

  void drop_available() noexcept {
    for (auto& [size, list] : available_) {
      while (list != nullptr) {
        const std::unique_ptr<Block> block(std::exchange(list, list->next));
        std::free(block->data);
        held_bytes_ -= size;
      }
    }
    available_.clear();
    available_bytes_ = 0;
  }

  [[noreturn]] void throw_out_of_memory(std::int64_t asked) const {
    throw Error(ErrorKind::internal,
                fmt::format("out of memory: asked for {} bytes with {} bytes in use and {} bytes waiting for work to "
                            "pass, on a machine with {} bytes; use more ranks on more machines, fewer --samples or a "
                            "shorter --seqlen (the first line of the log says what a rank needs)",
                            asked, in_use_, waiting_bytes_, physical_bytes_));
  }

  const std::shared_ptr<WorkClock> clock_;
  const std::int64_t physical_bytes_;
  mutable std::mutex mutex_;
  std::map<std::int64_t, Block*> available_;  // by block size
  Block* first_waiting_ = nullptr;            // released, in the order of their time
  Block* last_waiting_ = nullptr;
  std::int64_t in_use_ = 0;  // as asked for
  std::int64_t peak_ = 0;
  std::int64_t held_bytes_ = 0;  // in blocks, handed out or not
  std::int64_t available_bytes_ = 0;
  std::int64_t waiting_bytes_ = 0;
};

Arena::Arena(std::shared_ptr<WorkClock> clock) : state_(std::make_shared<State>(std::move(clock))) {}
Arena::~Arena() = default;

Buffer Arena::allocate(std::int64_t bytes) { return state_->allocate(bytes); }
std::int64_t Arena::bytes_in_use() const { return state_->bytes_in_use(); }
std::int64_t Arena::peak_bytes() const { return state_->peak_bytes(); }
std::int64_t Arena::bytes_cached() const { return state_->bytes_cached(); }

}  // namespace gptqd
