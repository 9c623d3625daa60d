#include "io/artifact/artifact_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "io/artifact/compressed_tensors.hpp"
#include "io/artifact/contained.hpp"
#include "io/artifact/gptq_format.hpp"
#include "io/json_file.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t max_config_bytes = std::int64_t{16} << 20;

}  // namespace

bool ArtifactReader::is_artifact(const fs::path& folder) {
  std::error_code ignored;
  const fs::path path = folder / "config.json";
  if (!fs::exists(path, ignored)) {
    return false;
  }
  const auto config = read_json(path, max_config_bytes);
  return config.is_object() && config.contains("quantization_config") && config["quantization_config"].is_object();
}

std::unique_ptr<ArtifactReader> ArtifactReader::open(const fs::path& folder) {
  require_contained(folder, {});
  const std::string where = (folder / "config.json").string();
  auto config = get<nlohmann::json>(read_json(folder / "config.json", max_config_bytes), "quantization_config", where);
  const std::string place = where + ": quantization_config";
  const auto method = get<std::string>(config, "quant_method", place);
  if (method != "gptq" && method != "compressed-tensors") {
    throw Error(
        ErrorKind::input,
        fmt::format("{}: quant_method is \"{}\"; known are \"gptq\" and \"compressed-tensors\"", place, method));
  }
  auto tensors = CheckpointReader::open(folder);
  std::vector<std::string> files;
  for (const auto& file : tensors->files()) {
    files.push_back(file.name);
  }
  require_contained(folder, files);
  if (method == "compressed-tensors") {
    return std::make_unique<CompressedTensorsReader>(std::move(config), std::move(tensors), place);
  }
  // In the file's order: the first of its patterns that fits decides.
  const auto ordered = read_ordered_json(folder / "config.json", max_config_bytes);
  const auto& settings = ordered.at("quantization_config");
  const auto dynamic = settings.contains("dynamic") ? settings.at("dynamic") : nlohmann::ordered_json();
  return std::make_unique<GptqReader>(std::move(config), dynamic, std::move(tensors), place);
}

ArtifactReader::ArtifactReader(nlohmann::json quantization_config, std::unique_ptr<CheckpointReader> tensors,
                               std::string marker, std::vector<std::string> suffixes)
    : quantization_config_(std::move(quantization_config)),
      tensors_(std::move(tensors)),
      marker_(std::move(marker)),
      suffixes_(std::move(suffixes)) {}

bool ArtifactReader::has_linear(std::string_view name) const {
  return tensors_->find(fmt::format("{}{}", name, marker_)) != nullptr;
}

LayerSettings ArtifactReader::packed_settings(const std::string& name) const {
  const auto found = settings(name);
  if (!found) {
    throw Error(ErrorKind::input,
                fmt::format("{}: packed in the files, but quantization_config leaves it unquantized", name));
  }
  return *found;
}

std::vector<std::string> ArtifactReader::linear_names() const {
  std::vector<std::string> result;
  for (const auto& name : tensors_->names()) {
    if (name.ends_with(marker_)) {
      result.push_back(name.substr(0, name.size() - marker_.size()));
    }
  }
  return result;
}

std::vector<std::string> ArtifactReader::passing_names() const {
  std::vector<std::string> result;
  for (const auto& name : tensors_->names()) {
    const bool packed = std::any_of(suffixes_.begin(), suffixes_.end(), [&](const std::string& suffix) {
      return name.ends_with(suffix) && has_linear(std::string_view(name).substr(0, name.size() - suffix.size()));
    });
    if (!packed) {
      result.push_back(name);
    }
  }
  return result;
}

}  // namespace gptqd::io
