#pragma once
/// @file Host memory, a stream that runs everything at once, and the tree of additions written naively.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "comm/tree_sum.hpp"

namespace gptqd::comm::test {

class ImmediateStream final : public Stream {
 public:
  Event record() override { return {}; }
  void wait(const Event&) override {}
  void synchronize() override { ++synchronized; }
  int synchronized = 0;
};

/// Counts the buffers that are alive, and the most there were.
struct Heap {
  int alive = 0;
  int most = 0;

  Buffer allocate(std::int64_t bytes) {
    most = std::max(most, ++alive);
    return Buffer(std::malloc(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))), bytes,
                  [this](void* data, std::int64_t) {
                    std::free(data);
                    --alive;
                  });
  }
};

template <class T>
void add_matrices(AnyView<2> dst, ConstAnyView<2> src) {
  const auto to = dst.as<T>();
  const auto from = src.as<T>();
  for (std::int64_t i = 0; i < to.rows(); ++i) {
    for (std::int64_t j = 0; j < to.cols(); ++j) {
      to(i, j) += from(i, j);
    }
  }
}

inline TreeOperations operations_on(Heap& heap) {
  return {.allocate = [&heap](std::int64_t bytes) { return heap.allocate(bytes); },
          .add =
              [](Stream&, AnyView<2> dst, ConstAnyView<2> src) {
                dst.dtype == DType::f32 ? add_matrices<float>(dst, src) : add_matrices<double>(dst, src);
              },
          .copy =
              [](Stream&, AnyView<2> dst, ConstAnyView<2> src) {
                for (std::int64_t row = 0; row < src.rows(); ++row) {
                  std::memcpy(dst.slice_rows(row, 1).data, src.slice_rows(row, 1).data,
                              static_cast<std::size_t>(src.cols() * size_of(src.dtype)));
                }
              }};
}

/// Numbers of very different size and sign, so that any other order of additions gives other bits.
template <class T>
std::vector<T> leaf_values(int leaf, Shape<2> shape) {
  std::mt19937 generator(static_cast<unsigned>(1000 + leaf));
  std::vector<T> values(static_cast<std::size_t>(shape[0] * shape[1]));
  for (auto& value : values) {
    const auto mantissa = static_cast<T>(generator() % 2000003) - T{1000001};
    value = std::ldexp(mantissa / T{3}, static_cast<int>(generator() % 24) - 12);
  }
  return values;
}

/// node(first, 2k) = node(first, k) + node(first + k, k).
template <class T>
std::vector<T> naive_tree(int first, int count, Shape<2> shape) {
  if (count == 1) {
    return leaf_values<T>(first, shape);
  }
  auto left = naive_tree<T>(first, count / 2, shape);
  const auto right = naive_tree<T>(first + count / 2, count / 2, shape);
  for (std::size_t i = 0; i < left.size(); ++i) {
    left[i] += right[i];
  }
  return left;
}

template <class T>
void push_leaves(Stream& stream, TreeSum& tree, LeafRange range) {
  for (int leaf = range.first; leaf < range.end(); ++leaf) {
    const auto values = leaf_values<T>(leaf, tree.shape());
    const auto matrix = tree.next().as<T>();
    std::copy(values.begin(), values.end(), matrix.data);
    tree.push(stream, leaf);
  }
}

}  // namespace gptqd::comm::test
