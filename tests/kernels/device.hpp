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
  /// A backend with so many host threads (0: all), where its results could depend on them.
  std::function<std::unique_ptr<Backend>(int threads)> make;
};
inline std::ostream& operator<<(std::ostream& out, const Device& device) { return out << device.name; }

/// Every backend that this build and this machine have.
std::vector<Device> available_devices();

/// For INSTANTIATE_TEST_SUITE_P.
inline std::string device_name(const ::testing::TestParamInfo<Device>& info) { return info.param.name; }

}  // namespace gptqd::test
