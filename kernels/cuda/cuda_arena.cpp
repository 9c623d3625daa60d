#include "kernels/cuda/cuda_arena.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "kernels/base/slab_pool.hpp"
#include "kernels/cuda/cuda_error.hpp"

namespace gptqd::cuda {

namespace {

constexpr std::int64_t mebibyte = std::int64_t{1} << 20;
/// Requests below this size share slabs of their own, so that they do not cut large ones into pieces.
constexpr std::int64_t small_request = mebibyte;
constexpr std::int64_t small_slab = 16 * mebibyte;
constexpr std::int64_t large_slab = 64 * mebibyte;
constexpr std::int64_t slab_step = 2 * mebibyte;
/// Bytes held beyond nine eighths of the peak in use before allocate() waits.
constexpr std::int64_t allowance = 256 * mebibyte;

std::int64_t round_up(std::int64_t bytes, std::int64_t step) { return (bytes + step - 1) / step * step; }

}  // namespace

class CudaArena::State : public std::enable_shared_from_this<CudaArena::State> {
 public:
  explicit State(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}

  ~State() {
    // Every Buffer holds this state, so all memory is back; cudaFree itself waits for work that still uses it.
    while (first_waiting_ != nullptr) {
      const std::unique_ptr<Block> block(std::exchange(first_waiting_, first_waiting_->next));
      pool_of(block->bytes).give_back(block->address);
    }
    if (cudaSetDevice(gpu_->device()) == cudaSuccess) {
      drop_idle_slabs();
    }
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
    gpu_->activate();
    const std::lock_guard lock(mutex_);
    // No GPU has that much, and what follows may round up without overflow.
    if (bytes > std::int64_t{1} << 50) {
      throw_out_of_memory(bytes);
    }
    auto block = std::make_unique<Block>();
    block->bytes = bytes;
    block->address = find(bytes);
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    auto* const raw = block.release();
    return Buffer(reinterpret_cast<void*>(raw->address), bytes,
                  [state = shared_from_this(), raw](void*, std::int64_t) { state->release(raw); });
  }

  std::int64_t bytes_in_use() const {
    const std::lock_guard lock(mutex_);
    return in_use_;
  }
  std::int64_t peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  std::int64_t bytes_held() const {
    const std::lock_guard lock(mutex_);
    return held();
  }

 private:
  struct Block {
    SlabPool::Address address = 0;
    std::int64_t bytes = 0;
    /// What has to be done before the memory may be used again; null: not known, so never.
    std::shared_ptr<const std::vector<Place>> after;
    Block* next = nullptr;
  };

  SlabPool& pool_of(std::int64_t bytes) { return bytes < small_request ? small_ : large_; }
  std::int64_t held() const { return small_.held_bytes() + large_.held_bytes(); }

  SlabPool::Address find(std::int64_t bytes) {
    SlabPool& pool = pool_of(bytes);
    const std::int64_t slab = bytes < small_request ? small_slab : std::max(large_slab, round_up(bytes, slab_step));
    const std::int64_t most = std::max(peak_, in_use_ + bytes);
    collect_passed();
    while (true) {
      if (const auto address = pool.take(bytes)) {
        return *address;
      }
      if (held() + slab > most + most / 8 + allowance) {
        if (first_waiting_ != nullptr && first_waiting_->after != nullptr) {
          wait_for_first();
          continue;
        }
        drop_idle_slabs();
      }
      add_slab(pool, slab, bytes);
    }
  }

  void add_slab(SlabPool& pool, std::int64_t bytes, std::int64_t asked) {
    void* memory = nullptr;
    cudaError_t status = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
    while (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // clears it
      while (first_waiting_ != nullptr && first_waiting_->after != nullptr) {
        wait_for_first();
      }
      const std::int64_t before = held();
      drop_idle_slabs();
      if (held() == before) {
        throw_out_of_memory(asked);
      }
      status = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
    }
    check(status, "taking device memory");
    pool.add_slab(reinterpret_cast<SlabPool::Address>(memory), bytes);
  }

  void drop_idle_slabs() {
    for (auto* pool : {&small_, &large_}) {
      for (const auto address : pool->remove_idle_slabs()) {
        cudaFree(reinterpret_cast<void*>(address));  // a failure shows in the next call
      }
    }
  }

  void release(Block* block) noexcept {
    const std::lock_guard lock(mutex_);
    in_use_ -= block->bytes;
    try {
      gpu_->activate();
      block->after = std::make_shared<const std::vector<Place>>(gpu_->unfinished());
    } catch (...) {
      // The device is in error, which the next synchronize() reports. What may still be in use is not handed out.
      block->after = nullptr;
    }
    block->next = nullptr;
    (last_waiting_ == nullptr ? first_waiting_ : last_waiting_->next) = block;
    last_waiting_ = block;
  }

  static bool has_passed(const Block& block) {
    return block.after != nullptr && std::all_of(block.after->begin(), block.after->end(), [](const Place& place) {
             return place.first->has_passed(place.second);
           });
  }

  void collect_passed() {
    while (first_waiting_ != nullptr && has_passed(*first_waiting_)) {
      collect_first();
    }
  }
  void wait_for_first() {
    for (const auto& [timeline, number] : *first_waiting_->after) {
      timeline->wait_for(number);
    }
    collect_first();
  }
  void collect_first() {
    pool_of(first_waiting_->bytes).give_back(first_waiting_->address);
    const std::unique_ptr<Block> block(std::exchange(first_waiting_, first_waiting_->next));
    if (first_waiting_ == nullptr) {
      last_waiting_ = nullptr;
    }
  }

  [[noreturn]] void throw_out_of_memory(std::int64_t asked) const {
    std::size_t available = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&available, &total);
    throw Error(ErrorKind::internal,
                fmt::format("out of GPU memory: asked for {} bytes with {} bytes in use, {} bytes held and {} bytes "
                            "left on a GPU with {} bytes; use --activations parked, more ranks, fewer --samples or a "
                            "shorter --seqlen (`gptq-dist plan` says what a rank needs)",
                            asked, in_use_, held(), available, total));
  }

  std::shared_ptr<Gpu> gpu_;
  mutable std::mutex mutex_;  // guards what follows
  SlabPool small_;
  SlabPool large_;
  Block* first_waiting_ = nullptr;  // in the order of their release
  Block* last_waiting_ = nullptr;
  std::int64_t in_use_ = 0;
  std::int64_t peak_ = 0;
};

CudaArena::CudaArena(std::shared_ptr<Gpu> gpu) : state_(std::make_shared<State>(std::move(gpu))) {}

Buffer CudaArena::allocate(std::int64_t bytes) { return state_->allocate(bytes); }
std::int64_t CudaArena::bytes_in_use() const { return state_->bytes_in_use(); }
std::int64_t CudaArena::peak_bytes() const { return state_->peak_bytes(); }
std::int64_t CudaArena::bytes_held() const { return state_->bytes_held(); }

}  // namespace gptqd::cuda
