#pragma once
/// @file Test data on a device: host matrices go up with any row stride and come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/device.hpp"
#include "tests/reference/matrix.hpp"

namespace gptqd::test {

using reference::Matrix;

/// Independent, about normal deviates; the same on every machine for one seed.
inline Matrix<float> normal(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double deviation = 1.0) {
  Matrix<float> result(rows, cols);
  std::mt19937_64 bits(seed);
  for (auto& value : result.data) {
    // The sum of four uniform numbers: the standard library's own normal distribution is not the same everywhere.
    double sum = -2.0;
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<double>(bits() >> 11) * 0x1p-53;
    }
    value = static_cast<float>(deviation * 1.7320508 * sum);
  }
  return result;
}

template <class T>
Matrix<T> filled(std::int64_t rows, std::int64_t cols, T value) {
  Matrix<T> result(rows, cols);
  result.data.assign(result.data.size(), value);
  return result;
}

/// Element by element.
template <class To, class From, class Convert>
Matrix<To> converted(const Matrix<From>& from, const Convert& convert) {
  Matrix<To> to(from.rows, from.cols);
  std::transform(from.data.begin(), from.data.end(), to.data.begin(), convert);
  return to;
}

/// What a correctly rounded result in this type may be off, relative to itself.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-24;
}

/// A matrix in a device's memory. What lies between its rows is filled with a pattern that download() checks.
template <class T>
struct DeviceMatrix {
  Buffer buffer;
  TensorView<T, 2> view;
};

/// The same with the element type at run time: the compute dtype of the test's device.
struct ComputeMatrix {
  Buffer buffer;
  AnyView<2> view;
};

/// One backend and one stream, and host data on their way to it and back.
class DeviceTensors {
 public:
  explicit DeviceTensors(std::unique_ptr<Backend> own) : backend(std::move(own)), stream(backend->create_stream()) {}
  explicit DeviceTensors(const Device& device, int threads = 0) : DeviceTensors(device.make(threads)) {}

  /// `gap` elements more than needed between rows.
  template <class T>
  DeviceMatrix<T> upload(const Matrix<T>& host, std::int64_t gap = 0) {
    const std::int64_t stride = host.cols + gap;
    std::vector<T> image(static_cast<std::size_t>(host.rows * stride));
    std::memset(static_cast<void*>(image.data()), gap_byte, image.size() * sizeof(T));
    for (std::int64_t r = 0; r < host.rows; ++r) {
      for (std::int64_t c = 0; c < host.cols; ++c) {
        image[static_cast<std::size_t>(r * stride + c)] = host(r, c);
      }
    }
    const auto bytes = static_cast<std::int64_t>(image.size() * sizeof(T));
    DeviceMatrix<T> device{backend->allocate(bytes), {}};
    device.view = TensorView<T, 2>(static_cast<T*>(device.buffer.data()), {host.rows, host.cols}, stride);
    backend->copy_to_device(*stream, device.buffer.data(), image.data(), bytes);
    stream->synchronize();
    return device;
  }

  /// A matrix whose elements are not numbers, for results.
  DeviceMatrix<float> unset(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) {
    return upload(filled(rows, cols, std::nanf("")), gap);
  }

  template <class T>
  DeviceMatrix<T> upload(const std::vector<T>& values) {
    Matrix<T> host(1, static_cast<std::int64_t>(values.size()));
    host.data = values;
    return upload(host);
  }

  /// Waits for the stream. Checks that nothing was written between the rows.
  template <class T>
  Matrix<T> download(const DeviceMatrix<T>& device) {
    return download_view(device.buffer, device.view);
  }
  template <class T>
  Matrix<T> download_view(const Buffer& buffer, const TensorView<T, 2>& view) {
    std::vector<T> image(static_cast<std::size_t>(view.rows() * view.stride));
    backend->copy_to_host(*stream, image.data(), buffer.data(), buffer.bytes());
    stream->synchronize();
    Matrix<T> host(view.rows(), view.cols());
    for (std::int64_t r = 0; r < view.rows(); ++r) {
      for (std::int64_t c = 0; c < view.stride; ++c) {
        const T& value = image[static_cast<std::size_t>(r * view.stride + c)];
        if (c < view.cols()) {
          host(r, c) = value;
        } else {
          T pattern;
          std::memset(static_cast<void*>(&pattern), gap_byte, sizeof(T));
          EXPECT_EQ(std::memcmp(&value, &pattern, sizeof(T)), 0) << "written behind row " << r << ", column " << c;
        }
      }
    }
    return host;
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;

 private:
  static constexpr int gap_byte = 0x5a;
};

/// A fixture on one device.
///
/// Operations of the forward pass take tensors of the compute dtype: rounded() makes the inputs numbers of that type,
/// so that a reference in fp64 starts from what the device sees; upload_rounded() and download() convert on the way.
class OnDevice : public ::testing::TestWithParam<Device>, public DeviceTensors {
 protected:
  using DeviceTensors::download;
  OnDevice() : DeviceTensors(GetParam()) {}

  /// `value` as a number of the compute dtype.
  float rounded(float value) const {
    switch (GetParam().compute) {
      case DType::f16:
        return to_float(to_half(value));
      case DType::bf16:
        return to_float(to_bfloat16(value));
      default:
        return value;
    }
  }
  Matrix<float> rounded(const Matrix<float>& host) const {
    return converted<float>(host, [this](float value) { return rounded(value); });
  }
  std::vector<float> rounded(std::vector<float> values) const {
    for (auto& value : values) {
      value = rounded(value);
    }
    return values;
  }

  ComputeMatrix upload_rounded(const Matrix<float>& host, std::int64_t gap = 0) {
    const auto any = [](auto device) {
      ComputeMatrix result{{}, device.view};
      result.buffer = std::move(device.buffer);
      return result;
    };
    switch (GetParam().compute) {
      case DType::f16:
        return any(upload(converted<Half>(host, to_half), gap));
      case DType::bf16:
        return any(upload(converted<BFloat16>(host, to_bfloat16), gap));
      default:
        return any(upload(host, gap));
    }
  }
  /// A matrix of the compute dtype whose elements are not numbers, for results.
  ComputeMatrix unset_compute(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) {
    return upload_rounded(filled(rows, cols, std::nanf("")), gap);
  }
  Matrix<float> download(const ComputeMatrix& device) {
    switch (device.view.dtype) {
      case DType::f16:
        return converted<float>(download_view(device.buffer, device.view.as<Half>()),
                                [](Half value) { return to_float(value); });
      case DType::bf16:
        return converted<float>(download_view(device.buffer, device.view.as<BFloat16>()),
                                [](BFloat16 value) { return to_float(value); });
      default:
        return download_view(device.buffer, device.view.as<float>());
    }
  }

  double roundoff() const { return unit_roundoff(GetParam().compute); }
  bool computes_in_f32() const { return GetParam().compute == DType::f32; }
  /// `bound` for results in fp32, and where they are rounded to a half type what that adds, `roundings` times.
  Matrix<double> bound_of(const Matrix<double>& expected, Matrix<double> bound, double roundings = 1.0) const {
    if (!computes_in_f32()) {
      for (std::size_t i = 0; i < bound.data.size(); ++i) {
        bound.data[i] += roundings * (1.01 * roundoff() * std::abs(expected.data[i]) + 0x1p-25);  // f16's subnormals
      }
    }
    return bound;
  }
  Matrix<double> bound_of(const Matrix<double>& expected, double bound, double roundings = 1.0) const {
    return bound_of(expected, filled(expected.rows, expected.cols, bound), roundings);
  }
};

/// The rank-1 view of a matrix of one row.
template <class T>
TensorView<T, 1> flat(const DeviceMatrix<T>& device) {
  return TensorView<T, 1>(device.view.data, {device.view.cols()});
}

/// Every element within `tolerance` (an absolute number, or a matrix of them) of what is expected.
inline void expect_near(const Matrix<float>& got, const Matrix<double>& expected, const Matrix<double>& tolerance) {
  ASSERT_EQ(got.rows, expected.rows);
  ASSERT_EQ(got.cols, expected.cols);
  for (std::int64_t r = 0; r < got.rows; ++r) {
    for (std::int64_t c = 0; c < got.cols; ++c) {
      ASSERT_NEAR(static_cast<double>(got(r, c)), expected(r, c), tolerance(r, c)) << "at [" << r << ", " << c << "]";
    }
  }
}
inline void expect_near(const Matrix<float>& got, const Matrix<double>& expected, double tolerance) {
  expect_near(got, expected, filled(expected.rows, expected.cols, tolerance));
}

/// The same bits.
template <class T>
void expect_identical(const Matrix<T>& a, const Matrix<T>& b) {
  ASSERT_EQ(a.rows, b.rows);
  ASSERT_EQ(a.cols, b.cols);
  EXPECT_EQ(std::memcmp(a.data.data(), b.data.data(), a.data.size() * sizeof(T)), 0);
}

/// The message of the Error that `body` throws; fails the test when it throws none.
template <class Body>
std::string error_message(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.message();
  }
  ADD_FAILURE() << "expected an Error";
  return {};
}

}  // namespace gptqd::test
