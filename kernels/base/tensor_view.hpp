#pragma once
/// @file Non-owning, by-value views of tensors: typed (TensorView) and with the element type at run time (AnyView).
#include <fmt/ranges.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/base/dtype.hpp"

namespace gptqd {

template <int Rank>
using Shape = std::array<std::int64_t, Rank>;

/// Row-major view; the last dimension is contiguous, the first has a stride of its own.
///
/// shape and stride count elements. `stride` is the distance between consecutive indices of the first dimension
/// (rank 1: unused). A view owns nothing; its memory may lie on a device.
template <class T, int Rank>
struct TensorView {
  T* data = nullptr;
  Shape<Rank> shape{};
  std::int64_t stride = 0;

  TensorView() = default;
  /// A dense tensor at `data`.
  TensorView(T* data_, Shape<Rank> shape_) : data(data_), shape(shape_), stride(dense_stride(shape_)) {}
  TensorView(T* data_, Shape<Rank> shape_, std::int64_t stride_) : data(data_), shape(shape_), stride(stride_) {}
  /// A view of mutable elements is a view of constant ones.
  template <class U>
  requires(std::is_same_v<const U, T>)
      TensorView(const TensorView<U, Rank>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data), shape(other.shape), stride(other.stride) {}

  std::int64_t rows() const { return shape[0]; }
  std::int64_t cols() const requires(Rank >= 2) { return shape[1]; }
  std::int64_t size() const {
    std::int64_t n = 1;
    for (const auto extent : shape) {
      n *= extent;
    }
    return n;
  }
  bool is_dense() const { return Rank == 1 || stride == dense_stride(shape); }
  T* row(std::int64_t i) const { return data + i * stride; }
  T& operator()(std::int64_t i) const requires(Rank == 1) { return data[i]; }
  T& operator()(std::int64_t i, std::int64_t j) const requires(Rank == 2) { return data[i * stride + j]; }
  /// Rows [first, first + count).
  TensorView slice_rows(std::int64_t first, std::int64_t count) const {
    TensorView part = *this;
    part.data = data + first * (Rank == 1 ? 1 : stride);
    part.shape[0] = count;
    return part;
  }
  /// Columns [first, first + count) of a matrix.
  TensorView slice_cols(std::int64_t first, std::int64_t count) const requires(Rank == 2) {
    return TensorView(data + first, {shape[0], count}, stride);
  }

 private:
  static std::int64_t dense_stride(const Shape<Rank>& shape) {
    std::int64_t n = 1;
    for (int i = 1; i < Rank; ++i) {
      n *= shape[static_cast<std::size_t>(i)];
    }
    return n;
  }
};

template <class T, int Rank>
using ConstTensorView = TensorView<const T, Rank>;

/// A view whose element type is known at run time. `Void` is void or const void.
template <class Void, int Rank>
struct BasicAnyView {
  using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;

  Void* data = nullptr;
  DType dtype = DType::f32;
  Shape<Rank> shape{};
  std::int64_t stride = 0;

  BasicAnyView() = default;
  BasicAnyView(Void* data_, DType dtype_, Shape<Rank> shape_) : data(data_), dtype(dtype_), shape(shape_), stride(1) {
    for (int i = 1; i < Rank; ++i) {
      stride *= shape[static_cast<std::size_t>(i)];
    }
  }
  BasicAnyView(Void* data_, DType dtype_, Shape<Rank> shape_, std::int64_t stride_)
      : data(data_), dtype(dtype_), shape(shape_), stride(stride_) {}
  template <class T>
  requires(std::is_convertible_v<T*, Void*> && !std::is_void_v<T>)
      BasicAnyView(const TensorView<T, Rank>& view)  // NOLINT(google-explicit-constructor)
      : data(view.data), dtype(dtype_of<std::remove_const_t<T>>), shape(view.shape), stride(view.stride) {}
  template <class Other>
  requires(std::is_const_v<Void>&& std::is_same_v<Other, void>)
      BasicAnyView(const BasicAnyView<Other, Rank>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data), dtype(other.dtype), shape(other.shape), stride(other.stride) {}

  std::int64_t rows() const { return shape[0]; }
  std::int64_t cols() const requires(Rank >= 2) { return shape[1]; }
  std::int64_t size() const {
    std::int64_t n = 1;
    for (const auto extent : shape) {
      n *= extent;
    }
    return n;
  }
  std::int64_t bytes() const { return size() * size_of(dtype); }
  bool is_dense() const { return Rank == 1 || shape[0] <= 1 || stride * shape[0] == size(); }

  /// The typed view. @pre dtype == dtype_of<T>
  template <class T>
  auto as() const {
    using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
    require(dtype == dtype_of<T>, "tensor view: element type differs from the one asked for");
    return TensorView<Element, Rank>(static_cast<Element*>(data), shape, stride);
  }
  BasicAnyView slice_rows(std::int64_t first, std::int64_t count) const {
    BasicAnyView part = *this;
    part.data = static_cast<Byte*>(data) + first * (Rank == 1 ? 1 : stride) * size_of(dtype);
    part.shape[0] = count;
    return part;
  }
  BasicAnyView slice_cols(std::int64_t first, std::int64_t count) const requires(Rank == 2) {
    BasicAnyView part = *this;
    part.data = static_cast<Byte*>(data) + first * size_of(dtype);
    part.shape[1] = count;
    return part;
  }
};

template <int Rank>
using AnyView = BasicAnyView<void, Rank>;
template <int Rank>
using ConstAnyView = BasicAnyView<const void, Rank>;

/// "[4096, 1024]" for messages.
template <std::size_t N>
std::string to_string(const std::array<std::int64_t, N>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace gptqd
