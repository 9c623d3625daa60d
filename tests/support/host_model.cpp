#include "tests/support/host_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "io/checkpoint_reader.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"

namespace gptqd::test {

namespace {

void write_tensors(const std::filesystem::path& path, const std::vector<const HostTensor*>& tensors) {
  std::vector<io::TensorDeclaration> declarations;
  for (const auto* tensor : tensors) {
    declarations.push_back({.name = tensor->name, .dtype = tensor->dtype, .shape = tensor->shape});
  }
  io::SafetensorsWriter writer(path, declarations);
  for (const auto* tensor : tensors) {
    writer.append(tensor->name, tensor->data);
  }
  writer.commit();
}

void write_json(const std::filesystem::path& path, const nlohmann::json& json) {
  std::ofstream(path) << json.dump(1) << "\n";
}

}  // namespace

float HostTensor::get(std::int64_t index) const {
  const std::byte* at = data.data() + index * size_of(dtype);
  if (dtype == DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  require(dtype == DType::f16 || dtype == DType::bf16, "host tensor: expected F32, F16 or BF16");
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  return dtype == DType::f16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
}

void HostTensor::set(std::int64_t index, float value) {
  std::byte* at = data.data() + index * size_of(dtype);
  if (dtype == DType::f32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  require(dtype == DType::f16 || dtype == DType::bf16, "host tensor: expected F32, F16 or BF16");
  const std::uint16_t bits = dtype == DType::f16 ? to_half(value).bits : to_bfloat16(value).bits;
  std::memcpy(at, &bits, sizeof(bits));
}

HostTensor to_dtype(const HostTensor& tensor, DType dtype) {
  HostTensor result{.name = tensor.name, .dtype = dtype, .shape = tensor.shape, .data = {}};
  result.data.resize(static_cast<std::size_t>(tensor.elements() * size_of(dtype)));
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    result.set(i, tensor.get(i));
  }
  return result;
}

HostModel HostModel::read(const std::filesystem::path& folder) {
  HostModel model{.config = io::read_json(folder / "config.json"), .tensors = {}};
  const auto reader = io::CheckpointReader::open(folder);
  for (const auto& name : reader->names()) {
    const auto& info = reader->at(name);
    auto& tensor =
        model.tensors.emplace_back(HostTensor{.name = name, .dtype = info.dtype, .shape = info.shape, .data = {}});
    tensor.data.resize(static_cast<std::size_t>(info.bytes));
    reader->read(info, tensor.data);
  }
  return model;
}

HostTensor& HostModel::at(const std::string& name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
  if (found == tensors.end()) {
    throw std::out_of_range("host model: no tensor " + name);
  }
  return *found;
}

void HostModel::remove(const std::string& name) {
  const auto index = &at(name) - tensors.data();
  tensors.erase(tensors.begin() + index);
}

void HostModel::write(const std::filesystem::path& folder) const {
  std::filesystem::create_directories(folder);
  write_json(folder / "config.json", config);
  std::vector<const HostTensor*> all;
  for (const auto& tensor : tensors) {
    all.push_back(&tensor);
  }
  write_tensors(folder / "model.safetensors", all);
}

void HostModel::write_sharded(const std::filesystem::path& folder, int files) const {
  std::filesystem::create_directories(folder);
  write_json(folder / "config.json", config);
  nlohmann::json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", nlohmann::json::object()}};
  for (int file = 0; file < files; ++file) {
    const auto name = fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, files);
    std::vector<const HostTensor*> part;
    for (std::size_t i = static_cast<std::size_t>(file); i < tensors.size(); i += static_cast<std::size_t>(files)) {
      part.push_back(&tensors[i]);
      index["weight_map"][tensors[i].name] = name;
    }
    write_tensors(folder / name, part);
  }
  write_json(folder / "model.safetensors.index.json", index);
}

}  // namespace gptqd::test
