#pragma once
/// @file The backends that tests run on: one row each, so that a device is added here and nowhere else.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/backend.hpp"

namespace gptqd::test {

struct Device {
  std::string name;
  /// Element type of activations and weights: one that the backend computes in.
  DType compute = DType::f32;
  /// A backend with so many host threads (0: all), where its results could depend on them.
  std::function<std::unique_ptr<Backend>(int threads)> make;
};
inline std::ostream& operator<<(std::ostream& out, const Device& device) { return out << device.name; }

/// Every backend that this build and this machine have: "cpu", "cuda". With GPTQD_REQUIRE_GPU set in the environment it
/// is an error when there is no GPU, so that a skipped GPU test cannot pass for one that ran.
std::vector<Device> available_devices();
/// Every backend in each of its compute dtypes: "cpu", "cuda_f32", "cuda_f16", "cuda_bf16".
std::vector<Device> compute_devices();

/// For INSTANTIATE_TEST_SUITE_P.
inline std::string device_name(const ::testing::TestParamInfo<Device>& info) { return info.param.name; }

}  // namespace gptqd::test
