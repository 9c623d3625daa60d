#include "io/artifact/gptq_format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "io/artifact/layer_patterns.hpp"
#include "io/artifact/tensor_elements.hpp"
#include "io/json_file.hpp"

namespace gptqd::io {

namespace {

/// qweight, qzeros, scales, g_idx.
std::vector<TensorDeclaration> declared(const LayerFormat& layer) {
  const int bits = layer.settings.bits;
  return {{layer.module + ".qweight", DType::i32, {layer.cols * bits / 32, layer.rows}},
          {layer.module + ".qzeros", DType::i32, {layer.groups(), layer.rows * bits / 32}},
          {layer.module + ".scales", DType::f16, {layer.groups(), layer.rows}},
          {layer.module + ".g_idx", DType::i32, {layer.cols}}};
}

/// The names of a block's linears by their shared inputs, of those that are packed in some block.
std::vector<std::vector<std::string>> quantized_groups(const ArtifactContent& content) {
  const auto is_packed = [&](const std::string& name) {
    return std::any_of(content.blocks.begin(), content.blocks.end(), [&](const auto& block) {
      return std::any_of(block.begin(), block.end(),
                         [&](const LayerFormat& layer) { return layer.module.ends_with("." + name); });
    });
  };
  std::vector<std::vector<std::string>> groups;
  for (auto group : content.groups_of_block) {
    std::erase_if(group, [&](const std::string& name) { return !is_packed(name); });
    if (!group.empty()) {
      groups.push_back(std::move(group));
    }
  }
  return groups;
}

void check_settings(const LayerSettings& settings, const std::string& where) {
  // A shape that fits every width leaves the width as the only possible obstacle.
  if (const auto reason = format_obstacle(32, 32, settings.bits, -1)) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", where, *reason));
  }
  if (settings.group_size != -1 && settings.group_size <= 0) {
    throw Error(ErrorKind::input, fmt::format("{}: group_size is {}, expected a positive number, or -1 for one group",
                                              where, settings.group_size));
  }
}

/// modules_in_block_to_quantize, a list of names or of lists of names: a module is quantized when its name holds one.
std::vector<std::string> quantized_names(const nlohmann::json& config, const std::string& where) {
  std::vector<std::string> names;
  const auto groups = get_or<nlohmann::json>(config, "modules_in_block_to_quantize", nullptr, where);
  if (groups.is_array() && !groups.empty() && groups.front().is_array()) {
    for (const auto& group : get<std::vector<nlohmann::json>>(config, "modules_in_block_to_quantize", where)) {
      for (auto& name : get<std::vector<std::string>>({{"group", group}}, "group", where)) {
        names.push_back(std::move(name));
      }
    }
  } else if (!groups.is_null()) {
    names = get<std::vector<std::string>>(config, "modules_in_block_to_quantize", where);
  }
  return names;
}

}  // namespace

std::optional<std::string> GptqFormat::obstacle(const LayerFormat& layer) const {
  if (zeros_ == ZeroFormat::v1 && !layer.settings.sym) {
    return "the format \"gptq\" cannot hold asymmetric zeros safely (a zero of 0 wraps, and readers disagree); choose "
           "\"gptq_v2\" or \"compressed-tensors\"";
  }
  if (const auto reason = format_obstacle(layer.rows, layer.cols, layer.settings.bits, layer.settings.group_size)) {
    return fmt::format(
        "the GPTQ format cannot hold it: {}; leave this module unquantized or choose another group size "
        "or width",
        *reason);
  }
  return std::nullopt;
}

std::vector<FormatTensor> GptqFormat::tensors(const LayerFormat& layer) const {
  std::vector<FormatTensor> tensors;
  for (auto& declaration : declared(layer)) {
    tensors.push_back({.declaration = std::move(declaration)});
  }
  return tensors;
}

std::vector<OwnedBytes> GptqFormat::bytes(PackedLinear linear) const {
  auto qzeros = pack_qzeros({linear.zeros.data(), {linear.groups(), linear.rows}}, linear.bits, zeros_);
  return {OwnedBytes::of(std::move(linear.qweight)), OwnedBytes::of(std::move(qzeros)),
          OwnedBytes::of(std::move(linear.scales)), OwnedBytes::of(std::move(linear.g_idx))};
}

nlohmann::json GptqFormat::quantization_config(const ArtifactContent& content) const {
  const ArtifactFormat format = zeros_ == ZeroFormat::v1 ? ArtifactFormat::gptq : ArtifactFormat::gptq_v2;
  const auto& settings = content.settings;
  nlohmann::json config = content.facts;
  config.update({{"quant_method", "gptq"},
                 {"bits", settings.bits},
                 {"group_size", settings.group_size},
                 {"desc_act", settings.reordered},
                 {"sym", settings.sym},
                 {"lm_head", false},
                 {"checkpoint_format", name_of(format)},
                 {"pack_dtype", "int32"},
                 {"modules_in_block_to_quantize", quantized_groups(content)}});
  auto dynamic = nlohmann::json::object();
  for (const auto& pattern : layer_patterns(content)) {
    if (pattern.settings) {
      dynamic["+:" + pattern.regex] = {{"bits", pattern.settings->bits},
                                       {"group_size", pattern.settings->group_size},
                                       {"sym", pattern.settings->sym}};
    } else {
      dynamic["-:" + pattern.regex] = nlohmann::json::object();
    }
  }
  if (!dynamic.empty()) {
    config["dynamic"] = std::move(dynamic);
  }
  return config;
}

GptqReader::GptqReader(nlohmann::json quantization_config, const nlohmann::ordered_json& dynamic,
                       std::unique_ptr<CheckpointReader> tensors, const std::string& where)
    : ArtifactReader(std::move(quantization_config), std::move(tensors), ".qweight",
                     {".qweight", ".qzeros", ".scales", ".g_idx"}),
      dynamic_(dynamic, where),
      quantized_(quantized_names(this->quantization_config(), where)) {
  const auto& config = this->quantization_config();
  settings_.bits = get<int>(config, "bits", where);
  settings_.group_size = get_or<std::int64_t>(config, "group_size", -1, where);
  settings_.sym = get_or<bool>(config, "sym", true, where);
  settings_.reordered = get_or<bool>(config, "desc_act", false, where);
  // Older tools write `format`, or nothing for v1.
  const auto format =
      get_or<std::string>(config, "checkpoint_format", get_or<std::string>(config, "format", "gptq", where), where);
  if (format != "gptq" && format != "gptq_v2") {
    throw Error(ErrorKind::input,
                fmt::format("{}: checkpoint_format is \"{}\"; known are \"gptq\" and \"gptq_v2\"", where, format));
  }
  zeros_ = format == "gptq" ? ZeroFormat::v1 : ZeroFormat::v2;
  check_settings(settings_, where);
}

std::optional<LayerSettings> GptqReader::settings(const std::string& name) const {
  const bool is_listed = quantized_.empty() || std::any_of(quantized_.begin(), quantized_.end(), [&](const auto& part) {
                           return name.find(part) != std::string::npos;
                         });
  auto settings = is_listed ? dynamic_.apply(settings_, name) : std::nullopt;
  if (settings) {
    check_settings(*settings, fmt::format("{}: quantization_config", name));
  }
  return settings;
}

LayerFormat GptqReader::layer(const std::string& name) const {
  const TensorInfo& qweight = tensors().at(name + ".qweight");
  if (qweight.shape.size() != 2 || qweight.dtype != DType::i32) {
    throw Error(ErrorKind::input, fmt::format("{}: {} with {} dimensions, expected I32 with 2", qweight.name,
                                              name_of(qweight.dtype), qweight.shape.size()));
  }
  LayerFormat layer{.module = name, .settings = packed_settings(name)};
  layer.rows = qweight.shape[1];
  layer.cols =
      qweight.shape[0] <= std::numeric_limits<std::int32_t>::max() ? qweight.shape[0] * 32 / layer.settings.bits : 0;
  if (const auto reason = format_obstacle(layer.rows, layer.cols, layer.settings.bits, layer.settings.group_size)) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", name, *reason));
  }
  const auto expected = declared(layer);
  expect_tensor(tensors(), expected[0]);
  expect_tensor(tensors(), expected[1]);
  // Without g_idx the groups are the trivial ones; desc_act says that they are not.
  if (layer.settings.reordered || tensors().find(expected[3].name) != nullptr) {
    layer.settings.reordered =
        !is_trivial_g_idx(read_elements<std::int32_t>(tensors(), expected[3]), layer.settings.group_size);
  }
  return layer;
}

PackedLinear GptqReader::read_linear(const std::string& name) const {
  const LayerFormat format = layer(name);
  const auto expected = declared(format);
  PackedLinear linear;
  linear.name = name;
  linear.bits = format.settings.bits;
  linear.group_size = format.settings.group_size;
  linear.sym = format.settings.sym;
  linear.rows = format.rows;
  linear.cols = format.cols;
  linear.qweight = read_elements<std::uint32_t>(tensors(), expected[0]);
  linear.zeros = unpack_qzeros(read_elements<std::uint32_t>(tensors(), expected[1]), linear.groups(), linear.rows,
                               linear.bits, zeros_);
  linear.scales = read_scales(tensors(), expected[2].name, expected[2].shape);
  linear.g_idx = tensors().find(expected[3].name) != nullptr ? read_elements<std::int32_t>(tensors(), expected[3])
                                                             : trivial_g_idx(linear.cols, linear.group_size);
  validate(linear);
  return linear;
}

}  // namespace gptqd::io
