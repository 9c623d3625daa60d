#include "io/gptq_checkpoint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view weight_suffix = ".weight";
constexpr std::int64_t chunk_bytes = std::int64_t{8} << 20;
constexpr std::int64_t max_config_bytes = std::int64_t{16} << 20;

// The files besides weights and configuration that engines and tokenizers look for.
constexpr std::array companion_files{
    "generation_config.json", "tokenizer.json",          "tokenizer_config.json", "vocab.json", "merges.txt",
    "tokenizer.model",        "special_tokens_map.json", "added_tokens.json"};

/// @throws Error (input) where the module is left unquantized, or has settings that we cannot read
GptqLayerSettings checked_settings(const GptqDynamic& dynamic, const GptqLayerSettings& base,
                                   const std::string& module);

/// What the artifact's format needs to know of quantization_config.
struct FormatSettings {
  GptqLayerSettings base;  ///< of the modules that `dynamic` does not name
  GptqDynamic dynamic;
  ZeroFormat zeros = ZeroFormat::v1;

  GptqLayerSettings of(const std::string& module) const { return checked_settings(dynamic, base, module); }
};

void check_settings(const GptqLayerSettings& settings, const std::string& where) {
  // A shape that fits every width leaves the width as the only possible obstacle.
  if (const auto obstacle = format_obstacle(32, 32, settings.bits, -1)) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", where, *obstacle));
  }
  if (settings.group_size != -1 && settings.group_size <= 0) {
    throw Error(ErrorKind::input, fmt::format("{}: group_size is {}, expected a positive number, or -1 for one group",
                                              where, settings.group_size));
  }
}

GptqLayerSettings checked_settings(const GptqDynamic& dynamic, const GptqLayerSettings& base,
                                   const std::string& module) {
  const auto settings = dynamic.apply(base, module);
  if (!settings) {
    throw Error(ErrorKind::input,
                fmt::format("{}: it is quantized, but quantization_config's dynamic says it is not", module));
  }
  check_settings(*settings, fmt::format("{}: quantization_config's dynamic", module));
  return *settings;
}

/// Reads quantization_config, ours or another tool's. Older tools write `format` or nothing for v1.
FormatSettings read_settings(const nlohmann::json& config, const std::string& where) {
  const auto method = get<std::string>(config, "quant_method", where);
  if (method != "gptq") {
    throw Error(ErrorKind::input, fmt::format("{}: quant_method is \"{}\", expected \"gptq\"", where, method));
  }
  FormatSettings settings;
  settings.base = {.bits = get<int>(config, "bits", where),
                   .group_size = get_or<std::int64_t>(config, "group_size", -1, where),
                   .sym = get_or<bool>(config, "sym", true, where),
                   .desc_act = get_or<bool>(config, "desc_act", false, where)};
  const auto format =
      get_or<std::string>(config, "checkpoint_format", get_or<std::string>(config, "format", "gptq", where), where);
  if (format != "gptq" && format != "gptq_v2") {
    throw Error(ErrorKind::input,
                fmt::format("{}: checkpoint_format is \"{}\"; known are \"gptq\" and \"gptq_v2\"", where, format));
  }
  settings.zeros = format == "gptq" ? ZeroFormat::v1 : ZeroFormat::v2;
  check_settings(settings.base, where);
  return settings;
}

/// The four tensors that replace X.weight of a layer [rows, cols].
std::vector<TensorDeclaration> quantized_tensors(const std::string& name, std::int64_t rows, std::int64_t cols,
                                                 const GptqLayerSettings& settings) {
  const std::int64_t groups = settings.group_size == -1 ? 1 : cols / settings.group_size;
  return {{name + ".qweight", DType::i32, {cols * settings.bits / 32, rows}},
          {name + ".qzeros", DType::i32, {groups, rows * settings.bits / 32}},
          {name + ".scales", DType::f16, {groups, rows}},
          {name + ".g_idx", DType::i32, {cols}}};
}

/// One tensor of the source and what becomes of it.
struct PlannedTensor {
  const TensorInfo* source = nullptr;
  std::int64_t block = -1;                ///< -1: outside the blocks
  std::string module;                     ///< of a quantized weight; empty: passes through
  std::vector<TensorDeclaration> output;  ///< one, or the four of a quantized layer
};

struct Plan {
  std::vector<PlannedTensor> tensors;                    ///< in the order of writing
  std::vector<std::vector<TensorDeclaration>> files{1};  ///< the same outputs, cut into files
  std::int64_t tensor_bytes = 0;
};

/// "model.layers.3." of "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.up_proj", ...
std::string common_prefix(const std::vector<std::string>& modules) {
  if (modules.empty()) {
    return {};
  }
  std::string_view prefix = modules.front();
  for (const auto& module : modules) {
    const auto differs = std::mismatch(prefix.begin(), prefix.end(), module.begin(), module.end()).first;
    prefix = prefix.substr(0, static_cast<std::size_t>(differs - prefix.begin()));
  }
  return std::string(prefix.substr(0, prefix.rfind('.') + 1));
}

/// 0: elements of 8 bytes; 1: whole words; 2, 3: bytes not divisible by 4, by 2. In this order every tensor of a file
/// begins at a multiple of its element, which readers that view the bytes in place need. (Layers of the format are
/// whole words.)
int alignment_class(const TensorInfo& tensor) {
  if (size_of(tensor.dtype) == 8) {
    return 0;
  }
  return tensor.bytes % 4 == 0 ? 1 : tensor.bytes % 2 == 0 ? 2 : 3;
}

std::vector<TensorDeclaration> plan_layer(const TensorInfo& weight, const std::string& module,
                                          const GptqLayerSettings& settings) {
  if (weight.shape.size() != 2) {
    throw Error(ErrorKind::input,
                fmt::format("{}: expected a matrix, got {} dimensions", weight.name, weight.shape.size()));
  }
  if (const auto obstacle = format_obstacle(weight.shape[0], weight.shape[1], settings.bits, settings.group_size)) {
    throw Error(ErrorKind::input,
                fmt::format("{}: the GPTQ format cannot hold it: {}; leave this module unquantized or choose "
                            "another group size or width",
                            module, *obstacle));
  }
  return quantized_tensors(module, weight.shape[0], weight.shape[1], settings);
}

Plan make_plan(const ArtifactRequest& request, const FormatSettings& settings) {
  std::unordered_map<std::string, std::int64_t> block_of_weight;
  std::vector<std::pair<std::string, std::int64_t>> prefixes;
  for (std::int64_t block = 0; block < std::ssize(request.block_linears); ++block) {
    const auto& modules = request.block_linears[static_cast<std::size_t>(block)];
    for (const auto& module : modules) {
      request.source->at(module + std::string(weight_suffix));
      require(block_of_weight.emplace(module + std::string(weight_suffix), block).second,
              fmt::format("artifact: module {} is in the list of two blocks, or twice in one", module));
    }
    if (const auto prefix = common_prefix(modules); !prefix.empty()) {
      prefixes.emplace_back(prefix, block);
    }
  }
  const auto block_of = [&](const std::string& name) {
    const auto found = std::find_if(prefixes.begin(), prefixes.end(),
                                    [&](const auto& entry) { return name.starts_with(entry.first); });
    return found == prefixes.end() ? std::int64_t{-1} : found->second;
  };

  Plan plan;
  for (const auto& name : request.source->names()) {
    PlannedTensor tensor{.source = request.source->find(name), .block = -1, .module = {}, .output = {}};
    if (const auto quantized = block_of_weight.find(name); quantized != block_of_weight.end()) {
      tensor.block = quantized->second;
      tensor.module = name.substr(0, name.size() - weight_suffix.size());
      tensor.output = plan_layer(*tensor.source, tensor.module, settings.of(tensor.module));
    } else {
      tensor.block = block_of(name);
      tensor.output = {{name, tensor.source->dtype, tensor.source->shape}};
    }
    plan.tensors.push_back(std::move(tensor));
  }
  std::stable_sort(plan.tensors.begin(), plan.tensors.end(), [](const PlannedTensor& a, const PlannedTensor& b) {
    const auto rank = [](const PlannedTensor& tensor) {
      return std::pair(tensor.module.empty() ? alignment_class(*tensor.source) : 1, tensor.block);
    };
    return rank(a) < rank(b);
  });

  std::int64_t file_bytes = 0;
  for (const auto& tensor : plan.tensors) {
    for (const auto& output : tensor.output) {
      const std::int64_t bytes = output.bytes();
      if (file_bytes > 0 && bytes > request.max_shard_bytes - file_bytes) {
        plan.files.emplace_back();
        file_bytes = 0;
      }
      plan.files.back().push_back(output);
      file_bytes += bytes;
      plan.tensor_bytes += bytes;
    }
  }
  return plan;
}

/// Writes the planned tensors file after file; a file is finished when the first tensor of the next one comes.
class WeightFiles {
 public:
  WeightFiles(const fs::path& folder, const Plan& plan, ArtifactSummary& summary,
              const std::function<void(std::string)>& progress)
      : folder_(folder), plan_(plan), summary_(summary), progress_(progress) {
    for (std::size_t i = 0; i < plan.files.size(); ++i) {
      const std::string name = plan.files.size() == 1
                                   ? "model.safetensors"
                                   : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, plan.files.size());
      names_.push_back(name);
      for (const auto& tensor : plan.files[i]) {
        if (!file_of_.emplace(tensor.name, i).second) {
          throw Error(ErrorKind::input,
                      fmt::format("the source already has a tensor {}, which quantizing would make", tensor.name));
        }
      }
    }
  }

  void append(const std::string& tensor, std::span<const std::byte> data) {
    const std::size_t file = file_of_.at(tensor);
    while (next_ <= file) {
      finish();
      writer_.emplace(folder_ / names_[next_], plan_.files[next_]);
      ++next_;
    }
    writer_->append(tensor, data);
  }

  void append(const std::string& tensor, const auto& numbers) { append(tensor, std::as_bytes(std::span(numbers))); }

  /// Commits the open file, and writes those that hold nothing but empty tensors.
  void finish_all() {
    finish();
    for (; next_ < names_.size(); ++next_) {
      writer_.emplace(folder_ / names_[next_], plan_.files[next_]);
      finish();
    }
  }

  nlohmann::json index() const {
    nlohmann::json weight_map = nlohmann::json::object();
    for (const auto& [tensor, file] : file_of_) {
      weight_map[tensor] = names_[file];
    }
    return {{"metadata", {{"total_size", plan_.tensor_bytes}}}, {"weight_map", std::move(weight_map)}};
  }

 private:
  void finish() {
    if (!writer_) {
      return;
    }
    writer_->commit();
    const std::string& name = names_[next_ - 1];
    summary_.files.push_back({.name = name, .bytes = writer_->bytes(), .xxh3_128 = writer_->checksum()});
    if (progress_) {
      progress_(fmt::format("wrote {} ({} of {})", name, next_, names_.size()));
    }
    writer_.reset();
  }

  fs::path folder_;
  const Plan& plan_;
  ArtifactSummary& summary_;
  const std::function<void(std::string)>& progress_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::size_t> file_of_;
  std::optional<SafetensorsWriter> writer_;
  std::size_t next_ = 0;
};

/// One block's layers by name, checked against what the plan expects.
class BlockContent {
 public:
  BlockContent(const ArtifactRequest& request, const FormatSettings& settings, std::int64_t block)
      : shard_(request.read_block(block)), settings_(settings) {
    if (shard_.block != block) {
      throw Error(ErrorKind::input, fmt::format("got block {}, expected {}", shard_.block, block));
    }
    const auto& expected = request.block_linears[static_cast<std::size_t>(block)];
    if (shard_.linears.size() != expected.size()) {
      throw Error(ErrorKind::input, fmt::format("block {} has {} quantized modules, expected {}", block,
                                                shard_.linears.size(), expected.size()));
    }
    for (const auto& linear : shard_.linears) {
      validate(linear);
    }
  }

  const PackedLinear& layer(const PlannedTensor& planned) const {
    const auto found = std::find_if(shard_.linears.begin(), shard_.linears.end(),
                                    [&](const PackedLinear& linear) { return linear.name == planned.module; });
    if (found == shard_.linears.end()) {
      throw Error(ErrorKind::input, fmt::format("block {} lacks the module {}", planned.block, planned.module));
    }
    const auto& shape = planned.source->shape;
    if (found->rows != shape[0] || found->cols != shape[1]) {
      throw Error(ErrorKind::input, fmt::format("{}: quantized as [{}, {}], but the source's weight is [{}, {}]",
                                                found->name, found->rows, found->cols, shape[0], shape[1]));
    }
    const auto expected = settings_.of(found->name);
    if (found->bits != expected.bits || found->group_size != expected.group_size || found->sym != expected.sym) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: has {} bits, group size {}, sym {}; quantization_config says {}, {}, {}", found->name,
                      found->bits, found->group_size, found->sym, expected.bits, expected.group_size, expected.sym));
    }
    if (!expected.desc_act && !is_trivial_g_idx(found->g_idx, found->group_size)) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: its g_idx is reordered, but quantization_config says desc_act false: engines "
                              "would ignore it",
                              found->name));
    }
    return *found;
  }

 private:
  BlockShard shard_;
  const FormatSettings& settings_;
};

void append_layer(WeightFiles& files, const PackedLinear& layer, ZeroFormat format) {
  const std::int64_t groups = layer.groups();
  files.append(layer.name + ".qweight", layer.qweight);
  files.append(layer.name + ".qzeros", pack_qzeros({layer.zeros.data(), {groups, layer.rows}}, layer.bits, format));
  files.append(layer.name + ".scales", layer.scales);
  files.append(layer.name + ".g_idx", layer.g_idx);
}

void append_passing(WeightFiles& files, const CheckpointReader& source, const TensorInfo& tensor,
                    std::vector<std::byte>& chunk) {
  for (std::int64_t offset = 0; offset < tensor.bytes;) {
    const auto part = std::span(chunk).first(static_cast<std::size_t>(std::min(chunk_bytes, tensor.bytes - offset)));
    source.read_range(tensor, offset, part);
    files.append(tensor.name, part);
    offset += std::ssize(part);
  }
}

void write_weights(const ArtifactRequest& request, const FormatSettings& settings, const Plan& plan,
                   const fs::path& folder, ArtifactSummary& summary) {
  WeightFiles files(folder, plan, summary, request.progress);
  std::vector<std::byte> chunk(static_cast<std::size_t>(chunk_bytes));
  std::optional<BlockContent> content;
  std::int64_t block = -1;
  for (const auto& tensor : plan.tensors) {
    if (tensor.module.empty()) {
      append_passing(files, *request.source, *tensor.source, chunk);
      continue;
    }
    if (tensor.block != block) {
      content.reset();  // before the next block is read: one in memory at a time
      block = tensor.block;
      with_context(fmt::format("reading block {} for the artifact", block),
                   [&] { content.emplace(request, settings, block); });
      if (request.progress) {
        request.progress(fmt::format("block {} of {}", block + 1, request.block_linears.size()));
      }
    }
    append_layer(files, content->layer(tensor), settings.zeros);
  }
  files.finish_all();
  if (plan.files.size() > 1) {
    const std::string text = files.index().dump(2) + "\n";
    write_file_atomically(folder / "model.safetensors.index.json", text);
    summary.files.push_back({.name = "model.safetensors.index.json",
                             .bytes = std::ssize(text),
                             .xxh3_128 = xxh3_128_hex(std::as_bytes(std::span(text)))});
  }
}

void write_text(const fs::path& folder, const std::string& name, const std::string& text, ArtifactSummary& summary) {
  write_file_atomically(folder / name, text);
  summary.files.push_back(
      {.name = name, .bytes = std::ssize(text), .xxh3_128 = xxh3_128_hex(std::as_bytes(std::span(text)))});
}

void copy_file(const fs::path& from, const fs::path& folder, ArtifactSummary& summary) {
  const File source(from);
  AtomicFile target(folder / from.filename());
  Hasher hasher;
  std::vector<std::byte> chunk(static_cast<std::size_t>(std::min(chunk_bytes, source.size())));
  for (std::int64_t offset = 0; offset < source.size();) {
    const auto part = std::span(chunk).first(static_cast<std::size_t>(std::min(chunk_bytes, source.size() - offset)));
    source.read_exactly(offset, part);
    hasher.update(part);
    target.append(part);
    offset += std::ssize(part);
  }
  target.commit();
  summary.files.push_back({.name = from.filename().string(), .bytes = source.size(), .xxh3_128 = hasher.hex()});
}

/// Files of the source folder that travel along, by name.
std::set<fs::path> companions(const fs::path& source_folder) {
  std::set<fs::path> result;
  std::error_code code;
  for (auto entry = fs::directory_iterator(source_folder, code); !code && entry != fs::directory_iterator();
       entry.increment(code)) {
    std::error_code ignored;
    const std::string name = entry->path().filename().string();
    const bool wanted = std::find(companion_files.begin(), companion_files.end(), name) != companion_files.end() ||
                        name.starts_with("chat_template.") || name.starts_with("LICENSE") ||
                        entry->path().extension() == ".py";
    if (wanted && entry->is_regular_file(ignored)) {
      result.insert(entry->path());
    }
  }
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot list {}: {}", source_folder.string(), code.message()));
  }
  return result;
}

/// The source's config.json in its own order of keys. @throws Error (input) when it is quantized already
nlohmann::ordered_json read_source_config(const fs::path& source_folder) {
  const fs::path path = source_folder / "config.json";
  auto config = read_ordered_json(path, max_config_bytes);
  if (!config.is_object()) {
    throw Error(ErrorKind::input, fmt::format("{}: expected an object", path.string()));
  }
  if (config.contains("quantization_config")) {
    throw Error(ErrorKind::input,
                fmt::format("{}: the model is quantized already (it has a quantization_config); give the float model",
                            path.string()));
  }
  return config;
}

FormatSettings check_request(const ArtifactRequest& request) {
  require(request.source != nullptr && request.read_block != nullptr,
          "artifact: the request lacks its source or read_block");
  require(request.max_shard_bytes > 0,
          fmt::format("artifact: max_shard_bytes is {}, expected a positive number", request.max_shard_bytes));
  FormatSettings settings = read_settings(request.quantization_config, "quantization_config");
  if (request.quantization_config.contains("dynamic")) {
    settings.dynamic = GptqDynamic(request.quantization_config.at("dynamic"), "quantization_config");
  }
  require((settings.zeros == ZeroFormat::v1) == request.v1,
          "artifact: quantization_config's checkpoint_format contradicts v1");
  for (const auto& modules : request.block_linears) {
    for (const auto& module : modules) {
      if (request.v1 && !settings.of(module).sym) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: the format \"gptq\" cannot hold asymmetric zeros safely (a zero of 0 wraps, and "
                                "readers disagree); choose \"gptq_v2\" or \"compressed-tensors\"",
                                module));
      }
    }
  }
  return settings;
}

}  // namespace

ArtifactSummary write_gptq_checkpoint(const ArtifactRequest& request) {
  const FormatSettings settings = check_request(request);
  auto config = read_source_config(request.source_folder);
  const Plan plan = make_plan(request, settings);
  AtomicFolder folder(request.out);
  ArtifactSummary summary;
  write_weights(request, settings, plan, folder.path(), summary);

  config["quantization_config"] = request.quantization_config;
  write_text(folder.path(), "config.json", config.dump(2) + "\n", summary);
  auto quantize_config = request.quantization_config;
  const char* format = request.v1 ? "gptq" : "gptq_v2";
  quantize_config["format"] = format;
  quantize_config["checkpoint_format"] = format;
  write_text(folder.path(), "quantize_config.json", quantize_config.dump(2) + "\n", summary);
  for (const auto& path : companions(request.source_folder)) {
    copy_file(path, folder.path(), summary);
  }
  folder.commit();
  for (const auto& file : summary.files) {
    summary.bytes += file.bytes;
  }
  return summary;
}

bool GptqArtifact::is_artifact(const fs::path& folder) {
  std::error_code ignored;
  const fs::path path = folder / "config.json";
  if (!fs::exists(path, ignored)) {
    return false;
  }
  const auto config = read_json(path, max_config_bytes);
  if (!config.is_object() || !config.contains("quantization_config") || !config["quantization_config"].is_object()) {
    return false;
  }
  return config["quantization_config"].value("quant_method", nlohmann::json()) == "gptq";
}

GptqArtifact GptqArtifact::open(const fs::path& folder) {
  const fs::path path = folder / "config.json";
  const std::string where = path.string();
  GptqArtifact artifact;
  artifact.settings_ = get<nlohmann::json>(read_json(path, max_config_bytes), "quantization_config", where);
  const FormatSettings settings = read_settings(artifact.settings_, where + ": quantization_config");
  artifact.base_ = settings.base;
  if (artifact.settings_.contains("dynamic")) {
    // In the file's order: the first pattern that matches decides.
    artifact.dynamic_ = GptqDynamic(read_ordered_json(path, max_config_bytes)["quantization_config"]["dynamic"], where);
  }
  artifact.zero_format_ = settings.zeros;
  artifact.tensors_ = CheckpointReader::open(folder);
  return artifact;
}

bool GptqArtifact::has_linear(std::string_view name) const {
  return tensors_->find(fmt::format("{}.qweight", name)) != nullptr;
}

std::vector<std::string> GptqArtifact::linear_names() const {
  constexpr std::string_view suffix = ".qweight";
  std::vector<std::string> result;
  for (const auto& name : tensors_->names()) {
    if (name.ends_with(suffix)) {
      result.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  return result;
}

std::optional<GptqLayerSettings> GptqArtifact::layer_settings(const std::string& name) const {
  return dynamic_.apply(base_, name);
}

namespace {

/// The tensor's elements, its type and shape checked first. I32 words may be read as unsigned ones.
template <class T>
std::vector<T> read_elements(const CheckpointReader& tensors, const TensorDeclaration& expected) {
  const TensorInfo& info = tensors.at(expected.name);
  if (info.dtype != expected.dtype || info.shape != expected.shape) {
    throw Error(ErrorKind::input,
                fmt::format("{}: {} [{}], expected {} [{}]", info.name, name_of(info.dtype),
                            fmt::join(info.shape, ", "), name_of(expected.dtype), fmt::join(expected.shape, ", ")));
  }
  std::vector<T> elements(static_cast<std::size_t>(info.bytes) / sizeof(T));
  tensors.read(info, std::as_writable_bytes(std::span(elements)));
  return elements;
}

}  // namespace

PackedLinear GptqArtifact::read_linear(const std::string& name) const {
  const TensorInfo& qweight = tensors_->at(name + ".qweight");
  if (qweight.shape.size() != 2 || qweight.dtype != DType::i32) {
    throw Error(ErrorKind::input, fmt::format("{}: {} with {} dimensions, expected I32 with 2", qweight.name,
                                              name_of(qweight.dtype), qweight.shape.size()));
  }
  const auto settings = checked_settings(dynamic_, base_, name);
  PackedLinear linear;
  linear.name = name;
  linear.bits = settings.bits;
  linear.group_size = settings.group_size;
  linear.sym = settings.sym;
  linear.rows = qweight.shape[1];
  linear.cols = qweight.shape[0] <= std::numeric_limits<std::int32_t>::max() ? qweight.shape[0] * 32 / linear.bits : 0;
  if (const auto obstacle = format_obstacle(linear.rows, linear.cols, linear.bits, linear.group_size)) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", name, *obstacle));
  }
  const auto expected = quantized_tensors(name, linear.rows, linear.cols, settings);
  linear.qweight = read_elements<std::uint32_t>(*tensors_, expected[0]);
  linear.zeros = unpack_qzeros(read_elements<std::uint32_t>(*tensors_, expected[1]), linear.groups(), linear.rows,
                               linear.bits, zero_format_);
  linear.scales = read_elements<Half>(*tensors_, expected[2]);
  if (settings.desc_act || tensors_->find(expected[3].name) != nullptr) {
    linear.g_idx = read_elements<std::int32_t>(*tensors_, expected[3]);
  } else {
    linear.g_idx.resize(static_cast<std::size_t>(linear.cols));
    for (std::int64_t k = 0; k < linear.cols; ++k) {
      linear.g_idx[static_cast<std::size_t>(k)] =
          static_cast<std::int32_t>(linear.group_size == -1 ? 0 : k / linear.group_size);
    }
  }
  validate(linear);
  return linear;
}

}  // namespace gptqd::io
