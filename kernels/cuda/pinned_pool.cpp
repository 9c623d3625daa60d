#include "kernels/cuda/pinned_pool.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "kernels/base/slab_pool.hpp"
#include "kernels/cuda/cuda_stream.hpp"

namespace gptqd::cuda {

namespace {

constexpr std::int64_t slab_step = std::int64_t{2} << 20;
constexpr std::int64_t least_slab = 32 * slab_step;

}  // namespace

class PinnedPool::State : public std::enable_shared_from_this<PinnedPool::State> {
 public:
  explicit State(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}

  Buffer allocate(std::int64_t bytes) {
    require(bytes >= 0, fmt::format("page-locked memory: asked for {} bytes", bytes));
    if (bytes == 0) {
      return {};
    }
    const std::lock_guard lock(mutex_);
    auto address = pool_.take(bytes);
    if (!address) {
      gpu_->activate();
      const std::int64_t slab = std::max(least_slab, (bytes + slab_step - 1) / slab_step * slab_step);
      auto memory = std::make_unique<PinnedMemory>(slab);
      const auto begin = reinterpret_cast<SlabPool::Address>(memory->data());
      slabs_.push_back(std::move(memory));
      pool_.add_slab(begin, slab);
      address = pool_.take(bytes);
    }
    return Buffer(reinterpret_cast<void*>(*address), bytes, [state = shared_from_this()](void* data, std::int64_t) {
      const std::lock_guard giving_back(state->mutex_);
      state->pool_.give_back(reinterpret_cast<SlabPool::Address>(data));
    });
  }

 private:
  std::shared_ptr<Gpu> gpu_;
  std::mutex mutex_;                                  // guards what follows
  std::vector<std::unique_ptr<PinnedMemory>> slabs_;  // kept until the end
  SlabPool pool_;
};

PinnedPool::PinnedPool(std::shared_ptr<Gpu> gpu) : state_(std::make_shared<State>(std::move(gpu))) {}

Buffer PinnedPool::allocate(std::int64_t bytes) { return state_->allocate(bytes); }

}  // namespace gptqd::cuda
