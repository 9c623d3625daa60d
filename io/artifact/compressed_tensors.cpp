#include "io/artifact/compressed_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "io/artifact/layer_patterns.hpp"
#include "io/artifact/tensor_elements.hpp"
#include "io/json_file.hpp"

namespace gptqd::io {

namespace {

constexpr std::string_view format_name = "pack-quantized";

/// [groups, rows] to [rows, groups] or back.
template <class T>
std::vector<T> transposed(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
  std::vector<T> result(values.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      result[static_cast<std::size_t>(col * rows + row)] = values[static_cast<std::size_t>(row * cols + col)];
    }
  }
  return result;
}

TensorDeclaration packed_declaration(const LayerFormat& layer) {
  return {layer.module + ".weight_packed", DType::i32, {layer.rows, layer.cols * layer.settings.bits / 32}};
}

TensorDeclaration zeros_declaration(const LayerFormat& layer) {
  return {layer.module + ".weight_zero_point", DType::i32, {layer.rows * layer.settings.bits / 32, layer.groups()}};
}

/// Scales in the model's type. @throws Error (input) for one that the type does not hold
OwnedBytes scales_as(const std::vector<Half>& scales, DType dtype, const std::string& name) {
  switch (dtype) {
    case DType::f16:
      return OwnedBytes::of(scales);
    case DType::f32: {
      std::vector<float> values;
      values.reserve(scales.size());
      for (const auto scale : scales) {
        values.push_back(to_float(scale));
      }
      return OwnedBytes::of(std::move(values));
    }
    default: {
      std::vector<BFloat16> values;
      values.reserve(scales.size());
      for (const auto scale : scales) {
        const float exact = to_float(scale);
        values.push_back(to_bfloat16(exact));
        if (to_float(values.back()) != exact) {
          throw Error(ErrorKind::input,
                      fmt::format("{}: the scale {} is no bfloat16 number, the model's type, in which "
                                  "compressed-tensors keeps scales; choose \"gptq\" or \"gptq_v2\"",
                                  name, exact));
        }
      }
      return OwnedBytes::of(std::move(values));
    }
  }
}

nlohmann::json weights_of(const LayerSettings& settings) {
  const bool channel = settings.group_size == -1;
  return {{"num_bits", settings.bits},
          {"type", "int"},
          {"symmetric", settings.sym},
          {"strategy", channel ? "channel" : "group"},
          {"group_size", channel ? nlohmann::json() : nlohmann::json(settings.group_size)},
          {"actorder", nullptr},
          {"dynamic", false},
          {"observer", "minmax"},
          {"observer_kwargs", nlohmann::json::object()},
          {"block_structure", nullptr}};
}

}  // namespace

std::optional<std::string> CompressedTensorsFormat::obstacle(const LayerFormat& layer) const {
  if (layer.settings.reordered) {
    return "compressed-tensors refuses dynamic act-order (\"actorder: group\") from version 0.19 on; choose \"gptq\" "
           "or \"gptq_v2\", or quantize with --act-order static";
  }
  if (dtype_ != DType::f16 && dtype_ != DType::bf16 && dtype_ != DType::f32) {
    return fmt::format("compressed-tensors keeps scales in the model's type, and {} is none that scales may have",
                       name_of(dtype_));
  }
  return format_obstacle(layer.rows, layer.cols, layer.settings.bits, layer.settings.group_size);
}

std::vector<FormatTensor> CompressedTensorsFormat::tensors(const LayerFormat& layer) const {
  const std::array<std::int64_t, 2> shape{layer.rows, layer.cols};
  const auto bytes = std::as_bytes(std::span(shape));
  std::vector<FormatTensor> tensors{
      {.declaration = packed_declaration(layer)},
      {.declaration = {layer.module + ".weight_scale", dtype_, {layer.rows, layer.groups()}}}};
  if (!layer.settings.sym) {
    tensors.push_back({.declaration = zeros_declaration(layer)});
  }
  tensors.push_back(
      {.declaration = {layer.module + ".weight_shape", DType::i64, {2}}, .fixed = {bytes.begin(), bytes.end()}});
  return tensors;
}

std::vector<OwnedBytes> CompressedTensorsFormat::bytes(PackedLinear linear) const {
  const std::int64_t groups = linear.groups();
  std::vector<OwnedBytes> bytes;
  bytes.push_back(
      OwnedBytes::of(transpose_words({linear.qweight.data(), {linear.cols * linear.bits / 32, linear.rows}})));
  linear.qweight.clear();
  linear.qweight.shrink_to_fit();
  bytes.push_back(scales_as(transposed(linear.scales, groups, linear.rows), dtype_, linear.name));
  if (!linear.sym) {
    const auto words = pack_qzeros({linear.zeros.data(), {groups, linear.rows}}, linear.bits, ZeroFormat::v2);
    bytes.push_back(OwnedBytes::of(transpose_words({words.data(), {groups, linear.rows * linear.bits / 32}})));
  }
  return bytes;
}

nlohmann::json CompressedTensorsFormat::quantization_config(const ArtifactContent& content) const {
  nlohmann::json groups = nlohmann::json::object();
  const auto add_group = [&](std::vector<std::string> targets, const LayerSettings& settings) {
    groups[fmt::format("group_{}", groups.size())] = {{"targets", std::move(targets)},
                                                      {"input_activations", nullptr},
                                                      {"output_activations", nullptr},
                                                      {"weights", weights_of(settings)}};
  };
  add_group({"Linear"}, content.settings);
  std::vector<std::pair<LayerSettings, std::vector<std::string>>> others;
  for (const auto& pattern : layer_patterns(content)) {
    if (!pattern.settings) {
      continue;  // each stands in `ignore`
    }
    const auto known =
        std::find_if(others.begin(), others.end(), [&](const auto& other) { return other.first == *pattern.settings; });
    auto& targets = known == others.end() ? others.emplace_back(*pattern.settings, std::vector<std::string>()).second
                                          : known->second;
    targets.push_back("re:" + pattern.regex);
  }
  for (auto& [settings, targets] : others) {
    add_group(std::move(targets), settings);
  }
  return {{"quant_method", "compressed-tensors"}, {"format", format_name},      {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},  {"kv_cache_scheme", nullptr}, {"ignore", content.float_linears},
          {"config_groups", std::move(groups)}};
}

CompressedTensorsReader::CompressedTensorsReader(nlohmann::json quantization_config,
                                                 std::unique_ptr<CheckpointReader> tensors, const std::string& where)
    : ArtifactReader(std::move(quantization_config), std::move(tensors), ".weight_packed",
                     {".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx"}) {
  const auto groups = get<nlohmann::json>(this->quantization_config(), "config_groups", where);
  if (!groups.is_object() || groups.empty()) {
    throw Error(ErrorKind::input, fmt::format("{}: config_groups: expected an object of groups", where));
  }
  for (const auto& [name, group] : groups.items()) {
    add_group(name, group, fmt::format("{}: config_groups: {}", where, name));
  }
  for (auto& text : get_or<std::vector<std::string>>(this->quantization_config(), "ignore", {}, where)) {
    ignored_.push_back(make_target(std::move(text), {}, where + ": ignore"));
  }
}

CompressedTensorsReader::Target CompressedTensorsReader::make_target(std::string text, const LayerSettings& settings,
                                                                     const std::string& where) {
  std::optional<Regex> pattern;
  if (text.starts_with("re:")) {
    // Python's re.match: anchored at the start alone.
    pattern.emplace(fmt::format("\\A(?:{})", text.substr(3)), fmt::format("{}: target \"{}\"", where, text));
  }
  return {.text = std::move(text), .pattern = std::move(pattern), .settings = settings};
}

void CompressedTensorsReader::add_group(const std::string& name, const nlohmann::json& group,
                                        const std::string& where) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::input, fmt::format("{}: {} is not supported; we read weights of 2, 3, 4 and 8 bits in the "
                                              "format pack-quantized, by groups or channels",
                                              where, what));
  };
  const auto own_format = get_or<std::string>(group, "format", "", where);
  const auto format =
      own_format.empty() ? get_or<std::string>(quantization_config(), "format", format_name.data(), name) : own_format;
  if (format != format_name) {
    refuse(fmt::format("format \"{}\"", format));
  }
  if (!get_or<nlohmann::json>(group, "input_activations", nullptr, where).is_null()) {
    refuse("quantization of activations (input_activations)");
  }
  const auto weights = get<nlohmann::json>(group, "weights", where);
  LayerSettings settings;
  settings.bits = get<int>(weights, "num_bits", where);
  settings.sym = get_or<bool>(weights, "symmetric", true, where);
  const auto type = get_or<std::string>(weights, "type", "int", where);
  const auto strategy = get_or<std::string>(weights, "strategy", "channel", where);
  if (type != "int" || (strategy != "group" && strategy != "channel")) {
    refuse(fmt::format("type \"{}\" with strategy \"{}\"", type, strategy));
  }
  if (const auto reason = format_obstacle(32, 32, settings.bits, -1)) {
    refuse(*reason);
  }
  if (strategy == "group") {
    settings.group_size = get<std::int64_t>(weights, "group_size", where);
    if (settings.group_size <= 0) {
      refuse(fmt::format("group_size {}", settings.group_size));
    }
  }
  const auto order = get_or<nlohmann::json>(weights, "actorder", nullptr, where);
  settings.reordered = order == "group" || order == "dynamic" || order == true;
  for (auto& target : get<std::vector<std::string>>(group, "targets", where)) {
    targets_.push_back(make_target(std::move(target), settings, where));
  }
}

std::optional<LayerSettings> CompressedTensorsReader::settings(const std::string& name) const {
  const auto fits = [&](const Target& target) {
    return target.text == name || (target.pattern && target.pattern->matches(name));
  };
  if (std::any_of(ignored_.begin(), ignored_.end(), fits)) {
    return std::nullopt;
  }
  const auto first = [&](auto fits) -> const Target* {
    for (const auto& target : targets_) {
      if (fits(target)) {
        return &target;
      }
    }
    return nullptr;
  };
  const Target* found = first([&](const Target& target) { return target.text == name; });
  if (found == nullptr) {
    found = first([&](const Target& target) { return target.pattern && target.pattern->matches(name); });
  }
  if (found == nullptr) {
    found = first([](const Target& target) { return target.text == "Linear"; });
  }
  return found == nullptr ? std::nullopt : std::optional(found->settings);
}

LayerFormat CompressedTensorsReader::layer(const std::string& name) const {
  const std::string shape_name = name + ".weight_shape";
  const auto shape = tensors().at(shape_name).dtype == DType::i32
                         ? [&] {
                             const auto narrow = read_elements<std::int32_t>(tensors(), {shape_name, DType::i32, {2}});
                             return std::vector<std::int64_t>(narrow.begin(), narrow.end());
                           }()
                         : read_elements<std::int64_t>(tensors(), {shape_name, DType::i64, {2}});
  LayerFormat layer{.module = name, .rows = shape[0], .cols = shape[1], .settings = packed_settings(name)};
  if (const auto reason = format_obstacle(layer.rows, layer.cols, layer.settings.bits, layer.settings.group_size)) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", name, *reason));
  }
  expect_tensor(tensors(), packed_declaration(layer));
  const std::string g_idx = name + ".weight_g_idx";
  if (layer.settings.reordered || tensors().find(g_idx) != nullptr) {
    layer.settings.reordered = !is_trivial_g_idx(
        read_elements<std::int32_t>(tensors(), {g_idx, DType::i32, {layer.cols}}), layer.settings.group_size);
  }
  return layer;
}

PackedLinear CompressedTensorsReader::read_linear(const std::string& name) const {
  const LayerFormat format = layer(name);
  const std::int64_t groups = format.groups();
  PackedLinear linear;
  linear.name = name;
  linear.bits = format.settings.bits;
  linear.group_size = format.settings.group_size;
  linear.sym = format.settings.sym;
  linear.rows = format.rows;
  linear.cols = format.cols;
  const auto packed = packed_declaration(format);
  linear.qweight =
      transpose_words({read_elements<std::uint32_t>(tensors(), packed).data(), {packed.shape[0], packed.shape[1]}});
  linear.scales =
      transposed(read_scales(tensors(), name + ".weight_scale", {format.rows, groups}), format.rows, groups);
  const auto middle = static_cast<std::uint8_t>(1 << (linear.bits - 1));
  const auto zeros = zeros_declaration(format);
  if (linear.sym) {
    linear.zeros.assign(linear.scales.size(), middle);
  } else if (tensors().at(zeros.name).dtype == DType::i8) {
    // Written so, unpacked and signed, by compressed-tensors before 0.10.
    auto signed_zeros = read_elements<std::uint8_t>(tensors(), {zeros.name, DType::i8, {format.rows, groups}});
    for (auto& zero : signed_zeros) {
      zero = static_cast<std::uint8_t>(zero + middle);
    }
    linear.zeros = transposed(signed_zeros, format.rows, groups);
  } else {
    const auto words = read_elements<std::uint32_t>(tensors(), zeros);
    linear.zeros = unpack_qzeros(transpose_words({words.data(), {zeros.shape[0], zeros.shape[1]}}), groups, linear.rows,
                                 linear.bits, ZeroFormat::v2);
  }
  const std::string g_idx = name + ".weight_g_idx";
  linear.g_idx = tensors().find(g_idx) != nullptr
                     ? read_elements<std::int32_t>(tensors(), {g_idx, DType::i32, {format.cols}})
                     : trivial_g_idx(linear.cols, linear.group_size);
  validate(linear);
  return linear;
}

}  // namespace gptqd::io
