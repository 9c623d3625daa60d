#pragma once
/// @file A run of elements that is normalized together: a row, or a head of one. Read once, kept in registers.
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

/// How a run's elements are spread: packs of `width`, over `threads` threads, `cached` packs each (0: as many as it
/// takes, read again at every use).
template <int width_, int threads_, int cached_>
struct RunLayout {
  static constexpr int width = width_;
  static constexpr int threads = threads_;
  static constexpr int cached = cached_;
};

inline constexpr int run_block = 256;

template <class T, class Layout>
class RunOfElements {
 public:
  using Element = Pack<T, Layout::width>;

  __device__ RunOfElements(const T* from, std::int64_t length)
      : from_(from), packs_(length / Layout::width), lane_(static_cast<int>(threadIdx.x) % Layout::threads) {
    for (int i = 0; i < Layout::cached; ++i) {
      const int pack = lane_ + i * Layout::threads;
      if (pack < packs_) {
        cache_[i] = load_pack<Layout::width>(from_ + pack * Layout::width);
      }
    }
  }

  /// body(first element's position, pack) for this thread's packs.
  template <class Body>
  __device__ void each(const Body& body) const {
    if constexpr (Layout::cached > 0) {
#pragma unroll
      for (int i = 0; i < Layout::cached; ++i) {
        const int pack = lane_ + i * Layout::threads;
        if (pack < packs_) {
          body(std::int64_t{pack} * Layout::width, cache_[i]);
        }
      }
    } else {
      for (std::int64_t pack = lane_; pack < packs_; pack += Layout::threads) {
        body(pack * Layout::width, load_pack<Layout::width>(from_ + pack * Layout::width));
      }
    }
  }

  /// Σ term(element) over the run, in a fixed order.
  template <class Sum, class Term>
  __device__ Sum sum(const Term& term) const {
    Sum total = 0;
    each([&](std::int64_t, const Element& pack) {
      for (int i = 0; i < Layout::width; ++i) {
        total += term(static_cast<Sum>(widen(pack.values[i])));
      }
    });
    return reduce<Layout::threads>(total, Plus{});
  }

 private:
  const T* from_;
  std::int64_t packs_;
  int lane_;
  Element cache_[Layout::cached > 0 ? Layout::cached : 1];
};

/// Sums over half types are long enough in fp32; those over f32 are taken in fp64.
template <class T>
using RunSum = std::conditional_t<std::is_same_v<T, float>, double, float>;

/// body.operator()<Layout>() with the layout for runs of `length` elements; packs only where `allows` them.
template <class T, class Body>
void with_run_layout(std::int64_t length, bool allows, const Body& body) {
  constexpr int width = full_width<T>;
  if (!allows || length % width != 0) {
    return length <= 128 ? body.template operator()<RunLayout<1, 32, 0>>()
                         : body.template operator()<RunLayout<1, run_block, 0>>();
  }
  const std::int64_t packs = length / width;
  if (packs <= 32) {
    return body.template operator()<RunLayout<width, 32, 1>>();
  }
  if (packs <= 128) {
    return body.template operator()<RunLayout<width, 32, 4>>();
  }
  if (packs <= 2 * run_block) {
    return body.template operator()<RunLayout<width, run_block, 2>>();
  }
  if (packs <= 4 * run_block) {
    return body.template operator()<RunLayout<width, run_block, 4>>();
  }
  if (packs <= 8 * run_block) {
    return body.template operator()<RunLayout<width, run_block, 8>>();
  }
  return body.template operator()<RunLayout<width, run_block, 0>>();
}

}  // namespace gptqd::cuda
