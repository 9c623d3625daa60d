#pragma once
/// @file A model folder in memory, to be changed and written again: what tests of odd and damaged checkpoints need.
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/dtype.hpp"

namespace gptqd::test {

struct HostTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;

  std::int64_t elements() const { return std::ssize(data) / size_of(dtype); }
  /// One element of a floating tensor.
  float get(std::int64_t index) const;
  void set(std::int64_t index, float value);
};

/// The tensor rounded to another floating type.
HostTensor to_dtype(const HostTensor& tensor, DType dtype);

/// config.json and the tensors of a folder, in file order.
struct HostModel {
  nlohmann::json config;
  std::vector<HostTensor> tensors;

  static HostModel read(const std::filesystem::path& folder);

  /// @throws std::out_of_range unless there is one of that name
  HostTensor& at(const std::string& name);
  void remove(const std::string& name);

  /// Writes config.json and model.safetensors into a folder, which is made where it is missing.
  void write(const std::filesystem::path& folder) const;
  /// The same with the tensors dealt out to `files` files and an index.
  void write_sharded(const std::filesystem::path& folder, int files) const;
};

}  // namespace gptqd::test
