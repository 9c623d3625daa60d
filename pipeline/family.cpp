#include "pipeline/family.hpp"

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

class TensorCheck {
 public:
  explicit TensorCheck(const io::CheckpointReader& tensors) : tensors_(tensors) {}

  void expect(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const io::TensorInfo& info = tensors_.at(name);
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
          fmt::format("tensor {} is {}, expected F16, BF16 or F32; quantized checkpoints cannot be quantized again",
                      name, gptqd::name_of(info.dtype)));
    }
  }
  void expect(const LinearSpec& linear) const {
    // An artifact holds the module packed; its reader checks those tensors.
    if (tensors_.find(linear.module + ".qweight") == nullptr) {
      expect(linear.weight_name(), {linear.rows, linear.cols});
    }
    if (linear.bias) {
      expect(linear.bias_name(), {linear.rows});
    }
  }
  void expect(const NormSpec& norm) const {
    expect(norm.weight_name(), {norm.width});
    if (norm.has_bias()) {
      expect(norm.bias_name(), {norm.width});
    }
  }

 private:
  const io::CheckpointReader& tensors_;
};

void check_tensors(const ModelSpec& spec, const io::CheckpointReader& tensors) {
  const TensorCheck check(tensors);
  check.expect(spec.token_table, {spec.vocabulary, spec.embedding_width});
  check.expect(spec.head, {spec.vocabulary, spec.embedding_width});
  if (spec.positions) {
    check.expect(spec.positions->tensor, {spec.positions->rows, spec.hidden});
  }
  for (const auto& linear : {spec.project_in, spec.project_out}) {
    if (linear) {
      check.expect(*linear);
    }
  }
  for (const auto& norm : {spec.embedding_norm, spec.final_norm}) {
    if (norm) {
      check.expect(*norm);
    }
  }
  for (const auto& block : spec.blocks) {
    for (const auto& norm : block.norms()) {
      check.expect(norm);
    }
    for (const auto& linear : block.linears()) {
      check.expect(linear);
    }
  }
}

}  // namespace

ModelSpec describe_model(const nlohmann::json& config, const io::CheckpointReader& tensors) {
  const auto type = io::get<std::string>(config, "model_type", "config.json");
  for (const auto& family : families) {
    if (family.model_type == type) {
      ModelSpec spec = family.describe(config, tensors);
      check_tensors(spec, tensors);
      return spec;
    }
  }
  std::vector<std::string_view> known;
  for (const auto& family : families) {
    known.push_back(family.model_type);
  }
  throw Error(ErrorKind::input, fmt::format("config.json: model_type \"{}\" is not supported; this version knows: {}",
                                            type, fmt::join(known, ", ")));
}

}  // namespace gptqd::pipeline
