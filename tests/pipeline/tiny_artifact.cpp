#include "tests/pipeline/tiny_artifact.hpp"

#include <algorithm>
#include <cmath>

#include "io/json_file.hpp"
#include "pipeline/artifact.hpp"
#include "pipeline/family.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline::test {

namespace {

using gptqd::test::HostModel;
using gptqd::test::HostTensor;

bool ends_with(const std::string& name, const std::string& suffix) { return !suffix.empty() && name.ends_with(suffix); }

/// Round to nearest on the range of each group.
io::PackedLinear rounded(const HostTensor& weight, const io::LayerFormat& layer) {
  io::PackedLinear linear;
  linear.name = layer.module;
  linear.bits = layer.settings.bits;
  linear.group_size = layer.settings.group_size;
  linear.sym = layer.settings.sym;
  linear.rows = layer.rows;
  linear.cols = layer.cols;
  const std::int64_t groups = layer.groups();
  for (std::int64_t k = 0; k < layer.cols; ++k) {
    linear.g_idx.push_back(static_cast<std::int32_t>(layer.settings.reordered ? k % groups : k * groups / layer.cols));
  }
  const int levels = (1 << linear.bits) - 1;
  const int middle = 1 << (linear.bits - 1);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(layer.rows * layer.cols));
  linear.scales.resize(static_cast<std::size_t>(groups * layer.rows));
  linear.zeros.resize(linear.scales.size());
  for (std::int64_t n = 0; n < layer.rows; ++n) {
    for (std::int64_t g = 0; g < groups; ++g) {
      float low = 0;
      float high = 0;
      for (std::int64_t k = 0; k < layer.cols; ++k) {
        if (linear.g_idx[static_cast<std::size_t>(k)] == g) {
          low = std::min(low, weight.get(n * layer.cols + k));
          high = std::max(high, weight.get(n * layer.cols + k));
        }
      }
      const auto at = static_cast<std::size_t>(g * layer.rows + n);
      const float range = linear.sym ? 2 * std::max(-low, high) : high - low;
      // Numbers of 8 significant bits, as the runs of bf16 models make them.
      linear.scales[at] = to_half(to_float(to_bfloat16(std::max(range / static_cast<float>(levels), 1e-4f))));
      const float scale = to_float(linear.scales[at]);
      linear.zeros[at] = static_cast<std::uint8_t>(
          linear.sym ? middle : std::clamp(static_cast<int>(std::lround(-low / scale)), 0, levels));
      for (std::int64_t k = 0; k < layer.cols; ++k) {
        if (linear.g_idx[static_cast<std::size_t>(k)] == g) {
          const auto code = std::lround(weight.get(n * layer.cols + k) / scale) + linear.zeros[at];
          codes[static_cast<std::size_t>(n * layer.cols + k)] =
              static_cast<std::uint8_t>(std::clamp<std::int64_t>(code, 0, levels));
        }
      }
    }
  }
  linear.qweight = io::pack_qweight({codes.data(), {layer.rows, layer.cols}}, linear.bits);
  return linear;
}

}  // namespace

std::filesystem::path tiny_source(const TinyOptions& options) {
  return gptqd::test::source_path("tests/golden/models/" + options.folder);
}

HostModel tiny_artifact(const TinyOptions& options) {
  HostModel model = HostModel::read(tiny_source(options));
  const auto reader = io::CheckpointReader::open(tiny_source(options));
  const ModelSpec spec = describe_model(model.config, *reader);
  const auto format = io::make_tensor_format(options.format, spec.dtype);
  nlohmann::json layers = nlohmann::json::object();
  const auto to_spec = [](const io::LayerSettings& settings) {
    return nlohmann::json{{"bits", settings.bits},
                          {"group_size", settings.group_size},
                          {"symmetric", settings.sym},
                          {"act_order", settings.reordered ? "dynamic" : "none"},
                          {"damping", 0.01}};
  };
  for (const auto& block : spec.blocks) {
    for (const auto& linear : block.linears()) {
      if (ends_with(linear.module, options.float_suffix)) {
        layers[linear.module] = nullptr;
      } else if (ends_with(linear.module, options.other_suffix)) {
        layers[linear.module] = to_spec(options.other);
      }
    }
  }
  const nlohmann::json fingerprint = {
      {"spec", to_spec(options.settings)}, {"layers", layers}, {"true_sequential", true}};
  Source source{.tensors = io::CheckpointReader::open(tiny_source(options)), .config = model.config, .model = spec};
  const auto content = content_of_source(fingerprint, source);
  for (const auto& block : content.blocks) {
    for (const auto& layer : block) {
      const auto linear = rounded(model.at(layer.module + ".weight"), layer);
      model.remove(layer.module + ".weight");
      auto bytes = format->bytes(linear);
      auto next = bytes.begin();
      for (const auto& [declaration, fixed] : format->tensors(layer)) {
        const auto data = fixed.empty() ? (next++)->bytes : std::span<const std::byte>(fixed);
        model.tensors.push_back({.name = declaration.name,
                                 .dtype = declaration.dtype,
                                 .shape = declaration.shape,
                                 .data = {data.begin(), data.end()}});
      }
    }
  }
  // 8-byte elements first, as files have to keep every tensor aligned.
  std::stable_sort(model.tensors.begin(), model.tensors.end(), [](const HostTensor& a, const HostTensor& b) {
    return size_of(a.dtype) == 8 && size_of(b.dtype) != 8;
  });
  model.config["quantization_config"] = format->quantization_config(content);
  return model;
}

}  // namespace gptqd::pipeline::test
