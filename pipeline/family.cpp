#include "pipeline/family.hpp"

#include <algorithm>
#include <array>

#include "io/json_file.hpp"

namespace gptqd::pipeline {

namespace {

struct Family {
  std::string_view model_type;
  ModelSpec (*describe)(const nlohmann::json& config, const io::CheckpointReader& tensors);
};
constexpr std::array families{Family{"bloom", describe_bloom},     Family{"llama", describe_llama},
                              Family{"mistral", describe_mistral}, Family{"opt", describe_opt},
                              Family{"phi3", describe_phi3},       Family{"qwen2", describe_qwen2},
                              Family{"qwen3", describe_qwen3}};

void check_tensor(const io::CheckpointReader& tensors, const std::string& name,
                  const std::vector<std::int64_t>& shape) {
  const io::TensorInfo& info = tensors.at(name);
  if (info.shape != shape) {
    throw Error(
        ErrorKind::input,
        fmt::format(
            "tensor {} has shape [{}], config.json makes it [{}]; config.json and the weights do not belong together",
            name, fmt::join(info.shape, ", "), fmt::join(shape, ", ")));
  }
  if (info.dtype != DType::f16 && info.dtype != DType::bf16 && info.dtype != DType::f32) {
    throw Error(
        ErrorKind::input,
        fmt::format("tensor {} is {}, expected F16, BF16 or F32; quantized checkpoints cannot be quantized again", name,
                    gptqd::name_of(info.dtype)));
  }
}

void check_tensors(const ModelSpec& spec, const io::CheckpointReader& tensors) {
  constexpr std::string_view weight = ".weight";
  for (const auto& [name, shape] : expected_tensors(spec)) {
    // An artifact holds the module packed; its reader checks those tensors.
    const bool is_packed =
        name.ends_with(weight) && (tensors.find(name.substr(0, name.size() - weight.size()) + ".qweight") != nullptr ||
                                   tensors.find(name + "_packed") != nullptr);
    if (!is_packed) {
      check_tensor(tensors, name, shape);
    }
  }
}

}  // namespace

bool is_known_family(std::string_view model_type) {
  return std::any_of(families.begin(), families.end(),
                     [&](const Family& family) { return family.model_type == model_type; });
}

ModelSpec describe_config(const nlohmann::json& config, const io::CheckpointReader& tensors) {
  const auto type = io::get<std::string>(config, "model_type", "config.json");
  for (const auto& family : families) {
    if (family.model_type == type) {
      return family.describe(config, tensors);
    }
  }
  std::vector<std::string_view> known;
  for (const auto& family : families) {
    known.push_back(family.model_type);
  }
  throw Error(ErrorKind::input, fmt::format("config.json: model_type \"{}\" is not supported; this version knows: {}",
                                            type, fmt::join(known, ", ")));
}

ModelSpec describe_model(const nlohmann::json& config, const io::CheckpointReader& tensors) {
  ModelSpec spec = describe_config(config, tensors);
  check_tensors(spec, tensors);
  return spec;
}

}  // namespace gptqd::pipeline
