#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "io/artifact/artifact_writer.hpp"
#include "io/artifact/companions.hpp"
#include "io/artifact/pieces.hpp"
#include "io/safetensors.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view weight_suffix = ".weight";

/// One tensor of the artifact and what it is made of.
struct PlannedTensor {
  TensorDeclaration declaration;
  const TensorInfo* passing = nullptr;  ///< of the source; null: of a layer
  std::int64_t block = -1;              ///< −1: outside the blocks
  std::int64_t layer = -1;
  int part = -1;                 ///< of TensorFormat::bytes; −1: fixed
  std::vector<std::byte> fixed;  ///< where the layer's shape decides the bytes
};

/// "model.layers.3." of "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.up_proj", ...
std::string common_prefix(const std::vector<LayerFormat>& layers) {
  if (layers.empty()) {
    return {};
  }
  std::string_view prefix = layers.front().module;
  for (const auto& layer : layers) {
    const auto differs = std::mismatch(prefix.begin(), prefix.end(), layer.module.begin(), layer.module.end()).first;
    prefix = prefix.substr(0, static_cast<std::size_t>(differs - prefix.begin()));
  }
  return std::string(prefix.substr(0, prefix.rfind('.') + 1));
}

/// 0: elements of 8 bytes; 1: whole words; 2, 3: bytes not divisible by 4, by 2. In this order every tensor of a file
/// begins at a multiple of its element, which readers that view the bytes in place need.
int alignment_class(const TensorDeclaration& tensor) {
  if (size_of(tensor.dtype) == 8) {
    return 0;
  }
  const std::int64_t bytes = tensor.bytes();
  return bytes % 4 == 0 ? 1 : bytes % 2 == 0 ? 2 : 3;
}

std::string module_of(const std::string& tensor) {
  return tensor.substr(0, std::min(tensor.rfind('.'), tensor.size()));
}

class FolderWriter final : public ArtifactWriter {
 public:
  FolderWriter(ArtifactFormat format, const ArtifactContent& content, const ArtifactOptions& options)
      : artifact_format_(format),
        format_(make_tensor_format(format, content.dtype)),
        content_(content),
        options_(options),
        quantization_config_(format_->quantization_config(content)) {
    require(content.tensors != nullptr, "artifact: the content lacks its tensors");
    require(options.max_shard_bytes > 0 && options.threads > 0,
            fmt::format("artifact: max_shard_bytes {} and {} threads, expected positive numbers",
                        options.max_shard_bytes, options.threads));
    cut(planned_tensors());
  }

  int weight_files() const override { return static_cast<int>(files_.size()); }

  ArtifactFile write_weights(int file, const fs::path& folder) const override {
    const auto& tensors = files_.at(static_cast<std::size_t>(file));
    std::vector<TensorDeclaration> declarations;
    for (const auto& tensor : tensors) {
      declarations.push_back(tensor.declaration);
    }
    const std::string name = file_name(static_cast<std::size_t>(file));
    SafetensorsWriter writer(folder / name, std::move(declarations));
    stream_pieces(pieces_of(tensors), options_.threads, [&](const TensorBytes& bytes) {
      writer.append(tensors[bytes.tensor].declaration.name, bytes.data.bytes);
    });
    writer.commit();
    if (options_.progress) {
      options_.progress(fmt::format("wrote {} ({} of {})", name, file + 1, files_.size()));
    }
    return {.name = name, .bytes = writer.bytes(), .xxh3_128 = writer.checksum()};
  }

  std::vector<ArtifactFile> write_rest(const fs::path& folder) const override {
    std::vector<ArtifactFile> written;
    if (files_.size() > 1) {
      written.push_back(write_text_file(folder / "model.safetensors.index.json", index().dump(2) + "\n"));
    }
    auto config = content_.config;
    if (!quantization_config_.is_null()) {
      config["quantization_config"] = quantization_config_;
    }
    written.push_back(write_text_file(folder / "config.json", config.dump(2) + "\n"));
    if (artifact_format_ == ArtifactFormat::gptq || artifact_format_ == ArtifactFormat::gptq_v2) {
      auto quantize_config = quantization_config_;
      quantize_config["format"] = quantize_config.at("checkpoint_format");
      written.push_back(write_text_file(folder / "quantize_config.json", quantize_config.dump(2) + "\n"));
    }
    written.push_back(write_provenance(artifact_format_, content_, folder));
    for (const auto& path : companions(content_.folder)) {
      written.push_back(copy_companion(path, folder));
    }
    return written;
  }

 private:
  /// All tensors in the order of writing.
  std::vector<PlannedTensor> planned_tensors() const {
    std::unordered_map<std::string, std::pair<std::int64_t, std::int64_t>> place_of_module;
    std::vector<std::pair<std::string, std::int64_t>> prefixes;
    for (std::int64_t block = 0; block < std::ssize(content_.blocks); ++block) {
      const auto& layers = content_.blocks[static_cast<std::size_t>(block)];
      for (std::int64_t layer = 0; layer < std::ssize(layers); ++layer) {
        const auto& module = layers[static_cast<std::size_t>(layer)].module;
        require(place_of_module.emplace(module, std::pair(block, layer)).second,
                fmt::format("artifact: module {} is in the list of two blocks, or twice in one", module));
      }
      if (const auto prefix = common_prefix(layers); !prefix.empty()) {
        prefixes.emplace_back(prefix, block);
      }
    }
    const auto block_of = [&](const std::string& name) {
      const auto found = std::find_if(prefixes.begin(), prefixes.end(),
                                      [&](const auto& entry) { return name.starts_with(entry.first); });
      return found == prefixes.end() ? std::int64_t{-1} : found->second;
    };

    const auto names = content_.tensors->names();
    const std::unordered_set<std::string> passing(content_.passing.begin(), content_.passing.end());
    // The last of a layer's tensors is its place: 8-byte ones, which come first in a file, say nothing.
    std::unordered_map<std::string, std::size_t> last_of_module;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!passing.contains(names[i])) {
        last_of_module[module_of(names[i])] = i;
      }
    }
    std::vector<PlannedTensor> tensors;
    std::size_t passed = 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto& name = names[i];
      if (passing.contains(name)) {
        const TensorInfo& info = content_.tensors->at(name);
        tensors.push_back(
            {.declaration = {name, info.dtype, info.shape}, .passing = &info, .block = block_of(name), .fixed = {}});
        ++passed;
        continue;
      }
      const auto place = place_of_module.find(module_of(name));
      if (place != place_of_module.end() && last_of_module.at(place->first) == i) {
        append_layer(tensors, place->second.first, place->second.second);
        place_of_module.erase(place);
      }
    }
    require(passed == passing.size(), fmt::format("artifact: the source lacks {} of {} passing tensors",
                                                  passing.size() - passed, passing.size()));
    if (!place_of_module.empty()) {
      content_.tensors->at(place_of_module.begin()->first + std::string(weight_suffix));  // says what is there instead
      throw Error(ErrorKind::internal,
                  fmt::format("artifact: nothing marks the place of {}", place_of_module.begin()->first));
    }
    std::stable_sort(tensors.begin(), tensors.end(), [](const PlannedTensor& a, const PlannedTensor& b) {
      const auto rank = [](const PlannedTensor& tensor) {
        return std::pair(alignment_class(tensor.declaration), tensor.block);
      };
      return rank(a) < rank(b);
    });
    return tensors;
  }

  void append_layer(std::vector<PlannedTensor>& tensors, std::int64_t block, std::int64_t layer) const {
    const auto& format = content_.blocks[static_cast<std::size_t>(block)][static_cast<std::size_t>(layer)];
    if (const auto reason = format_->obstacle(format)) {
      throw Error(ErrorKind::usage, fmt::format("{}: {}", format.module, *reason));
    }
    int part = 0;
    for (auto& tensor : format_->tensors(format)) {
      const bool fixed = !tensor.fixed.empty();
      tensors.push_back({.declaration = std::move(tensor.declaration),
                         .block = block,
                         .layer = layer,
                         .part = fixed ? -1 : part++,
                         .fixed = std::move(tensor.fixed)});
    }
  }

  void cut(std::vector<PlannedTensor> tensors) {
    std::unordered_set<std::string> names;
    std::int64_t file_bytes = 0;
    for (auto& tensor : tensors) {
      const std::int64_t bytes = tensor.declaration.bytes();
      if (!names.insert(tensor.declaration.name).second) {
        throw Error(ErrorKind::input, fmt::format("the source already has a tensor {}, which quantizing would make",
                                                  tensor.declaration.name));
      }
      if (file_bytes > 0 && bytes > options_.max_shard_bytes - file_bytes) {
        files_.emplace_back();
        file_bytes = 0;
      }
      files_.back().push_back(std::move(tensor));
      file_bytes += bytes;
      tensor_bytes_ += bytes;
    }
  }

  std::string file_name(std::size_t file) const {
    return files_.size() == 1 ? "model.safetensors"
                              : fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, files_.size());
  }

  std::vector<Piece> pieces_of(const std::vector<PlannedTensor>& tensors) const {
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < tensors.size();) {
      const auto& tensor = tensors[i];
      if (tensor.passing != nullptr) {
        append_passing(pieces, i, *content_.tensors, *tensor.passing);
        ++i;
      } else if (tensor.part < 0) {
        pieces.push_back([i, &tensor] {
          return std::vector{TensorBytes{.tensor = i, .data = {.owner = nullptr, .bytes = tensor.fixed}}};
        });
        ++i;
      } else {
        std::size_t end = i;
        while (end < tensors.size() && tensors[end].part >= 0 && tensors[end].block == tensor.block &&
               tensors[end].layer == tensor.layer) {
          ++end;
        }
        pieces.push_back([this, &tensors, i, end] { return layer_bytes(tensors, i, end); });
        i = end;
      }
    }
    return pieces;
  }

  /// The bytes of the tensors [begin, end), all of one layer.
  std::vector<TensorBytes> layer_bytes(const std::vector<PlannedTensor>& tensors, std::size_t begin,
                                       std::size_t end) const {
    const auto& first = tensors[begin];
    auto parts = with_context(fmt::format("reading block {} for the artifact", first.block),
                              [&] { return format_->bytes(read_declared(content_, first.block, first.layer)); });
    std::vector<TensorBytes> bytes;
    for (std::size_t i = begin; i < end; ++i) {
      bytes.push_back({.tensor = i, .data = std::move(parts.at(static_cast<std::size_t>(tensors[i].part)))});
    }
    return bytes;
  }

  nlohmann::json index() const {
    nlohmann::json map = nlohmann::json::object();
    for (std::size_t file = 0; file < files_.size(); ++file) {
      for (const auto& tensor : files_[file]) {
        map[tensor.declaration.name] = file_name(file);
      }
    }
    return {{"metadata", {{"total_size", tensor_bytes_}}}, {"weight_map", std::move(map)}};
  }

  ArtifactFormat artifact_format_;
  std::unique_ptr<TensorFormat> format_;
  const ArtifactContent& content_;
  ArtifactOptions options_;
  nlohmann::json quantization_config_;
  std::vector<std::vector<PlannedTensor>> files_{1};
  std::int64_t tensor_bytes_ = 0;
};

}  // namespace

std::unique_ptr<ArtifactWriter> make_folder_writer(ArtifactFormat format, const ArtifactContent& content,
                                                   const ArtifactOptions& options) {
  return std::make_unique<FolderWriter>(format, content, options);
}

}  // namespace gptqd::io
