#include "pipeline/artifact.hpp"

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "io/artifact/companions.hpp"
#include "io/json_file.hpp"
#include "pipeline/fingerprint.hpp"
#include "pipeline/gguf_artifact.hpp"
#include "pipeline/layer_specs.hpp"
#include "version.hpp"

namespace gptqd::pipeline {

namespace {

/// Linears of a block that share an input, by their names within the block.
std::vector<std::vector<std::string>> groups_of_block(const ModelSpec& model) {
  std::vector<std::vector<std::string>> groups;
  const auto& block = model.blocks.front();
  for (const Phase phase : phases) {
    auto& names = groups.emplace_back();
    for (const auto& linear : block.group(phase)) {
      names.push_back(linear.module.substr(block.prefix.size()));
    }
  }
  return groups;
}

/// The model's linears outside its blocks, as the model's classes name them (which `ignore` lists go by).
std::vector<std::string> linears_outside_blocks(const ModelSpec& model) {
  std::vector<std::string> names{"lm_head"};
  for (const auto& linear : {model.project_in, model.project_out}) {
    if (linear) {
      names.push_back(linear->module.starts_with("decoder.") ? "model." + linear->module : linear->module);
    }
  }
  return names;
}

/// @throws Error (input) for a shard of another run
void require_own(const io::ShardStore& store, const io::BlockShard& shard, const std::string& fingerprint) {
  if (shard.fingerprint != fingerprint) {
    throw Error(ErrorKind::input, fmt::format("{} was made by another run (fingerprint {}, this run's is {}); delete "
                                              "it and run again, or use another --work",
                                              store.shard_path(shard.block).string(), shard.fingerprint, fingerprint));
  }
}

/// Layers of shards one at a time. A shard is read when the first of its layers is asked for; at most two are held, the
/// one that is being used up and the next.
class ShardLayers {
 public:
  ShardLayers(const io::ShardStore& store, std::string fingerprint, std::function<void(const io::BlockShard&)> seen)
      : store_(store), fingerprint_(std::move(fingerprint)), seen_(std::move(seen)) {}

  io::PackedLinear read(std::int64_t block, const std::string& module) {
    const auto file = hold(block).get();
    const auto& linears = file->account().linears;
    const auto found = std::find_if(linears.begin(), linears.end(),
                                    [&](const io::PackedLinear& linear) { return linear.name == module; });
    if (found == linears.end()) {
      throw Error(ErrorKind::input, fmt::format("{} lacks the module {}", store_.shard_path(block).string(), module));
    }
    return file->read(static_cast<std::size_t>(found - linears.begin()));
  }

 private:
  using Held = std::shared_future<std::shared_ptr<const io::ShardFile>>;

  /// The first who asks reads the shard, the others wait for it.
  Held hold(std::int64_t block) {
    std::promise<std::shared_ptr<const io::ShardFile>> promise;
    const Held held = promise.get_future().share();
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = held_.find(block); found != held_.end()) {
        return found->second;
      }
      while (held_.size() > 1) {
        held_.erase(held_.begin());
      }
      held_[block] = held;
    }
    try {
      auto file = std::make_shared<const io::ShardFile>(open_shard(store_, block, fingerprint_));
      const std::lock_guard lock(mutex_);
      if (seen_blocks_.insert(block).second) {
        seen_(file->account());
      }
      promise.set_value(std::move(file));
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
    return held;
  }

  const io::ShardStore& store_;
  std::string fingerprint_;
  std::function<void(const io::BlockShard&)> seen_;
  std::mutex mutex_;
  std::map<std::int64_t, Held> held_;
  std::set<std::int64_t> seen_blocks_;
};

/// Whether no quantized linear has a zero point of its own.
bool all_symmetric(const nlohmann::json& fingerprint) {
  if (fingerprint.contains("layers")) {
    for (const auto& [module, differences] : fingerprint.at("layers").items()) {
      if (differences.is_object() && !differences.value("symmetric", true)) {
        return false;
      }
    }
  }
  return fingerprint.at("spec").at("symmetric");
}

nlohmann::ordered_json config_of(const std::filesystem::path& folder) {
  auto config = io::read_ordered_json(folder / "config.json");
  config.erase("quantization_config");
  return config;
}

/// What a GPTQ checkpoint says of how its codes were found.
nlohmann::json facts_of(const io::ArtifactReader& reader, const std::filesystem::path& folder) {
  if (const auto provenance = io::read_provenance(folder)) {
    return provenance->at("facts");
  }
  nlohmann::json facts = nlohmann::json::object();
  for (const char* key : {"damp_percent", "true_sequential", "static_groups", "meta"}) {
    if (reader.quantization_config().contains(key)) {
      facts[key] = reader.quantization_config().at(key);
    }
  }
  return facts;
}

}  // namespace

std::vector<std::vector<std::string>> quantized_modules(const nlohmann::json& fingerprint, const ModelSpec& model) {
  std::vector<std::vector<std::string>> modules;
  for (const auto& block : model.blocks) {
    auto& names = modules.emplace_back();
    for (const auto& linear : block.linears()) {
      if (layer_settings(fingerprint, linear.module)) {
        names.push_back(linear.module);
      }
    }
  }
  return modules;
}

io::ArtifactFormat default_format(const nlohmann::json& fingerprint) {
  return all_symmetric(fingerprint) ? io::ArtifactFormat::gptq : io::ArtifactFormat::gptq_v2;
}

io::ArtifactContent content_of_source(const nlohmann::json& fingerprint, const Source& source) {
  const auto& spec = fingerprint.at("spec");
  io::ArtifactContent content;
  content.folder = source.tensors->folder();
  content.config = config_of(content.folder);
  content.dtype = source.model.dtype;
  content.tensors = source.tensors.get();
  content.settings = base_settings(fingerprint);
  content.float_linears = linears_outside_blocks(source.model);
  std::unordered_map<std::string, bool> packed;
  for (const auto& block : source.model.blocks) {
    auto& layers = content.blocks.emplace_back();
    for (const auto& linear : block.linears()) {
      const auto settings = layer_settings(fingerprint, linear.module);
      if (!settings) {
        content.float_linears.push_back(linear.module);
        continue;
      }
      layers.push_back({.module = linear.module, .rows = linear.rows, .cols = linear.cols, .settings = *settings});
      packed[linear.weight_name()] = true;
    }
  }
  for (const auto& name : source.tensors->names()) {
    if (!packed.contains(name)) {
      content.passing.push_back(name);
    }
  }
  content.groups_of_block = groups_of_block(source.model);
  content.facts = {
      {"true_sequential", fingerprint.at("true_sequential")},
      {"static_groups", spec.at("act_order") == "static"},
      {"damp_percent", spec.at("damping")},
      {"meta",
       {{"quantizer", {fmt::format("gptq-dist:{}", version)}}, {"fingerprint", fingerprint_hash(fingerprint)}}}};
  return content;
}

io::ArtifactContent content_of_shards(const io::ShardStore& store, const nlohmann::json& fingerprint,
                                      const Source& source, std::function<void(const io::BlockShard&)> seen) {
  auto content = content_of_source(fingerprint, source);
  auto shards = std::make_shared<ShardLayers>(store, fingerprint_hash(fingerprint), std::move(seen));
  content.read_layer = [shards = std::move(shards), modules = quantized_modules(fingerprint, source.model)](
                           std::int64_t block, std::int64_t layer) {
    return shards->read(block, modules.at(static_cast<std::size_t>(block)).at(static_cast<std::size_t>(layer)));
  };
  return content;
}

io::ArtifactContent content_of_artifact(const io::ArtifactReader& reader, const std::filesystem::path& folder,
                                        const ModelSpec& model) {
  io::ArtifactContent content;
  content.folder = folder;
  content.config = config_of(folder);
  content.dtype = model.dtype;
  content.tensors = &reader.tensors();
  content.passing = reader.passing_names();
  content.float_linears = linears_outside_blocks(model);
  content.groups_of_block = groups_of_block(model);
  content.facts = facts_of(reader, folder);
  std::vector<std::pair<io::LayerSettings, std::int64_t>> kinds;
  bool reordered = false;
  for (const auto& block : model.blocks) {
    auto& layers = content.blocks.emplace_back();
    for (const auto& linear : block.linears()) {
      if (!reader.has_linear(linear.module)) {
        content.float_linears.push_back(linear.module);
        continue;
      }
      layers.push_back(reader.layer(linear.module));
      if (layers.back().rows != linear.rows || layers.back().cols != linear.cols) {
        throw Error(ErrorKind::input, fmt::format("{}: packed as [{}, {}], config.json says [{}, {}]", linear.module,
                                                  layers.back().rows, layers.back().cols, linear.rows, linear.cols));
      }
      reordered = reordered || layers.back().settings.reordered;
      auto kind = layers.back().settings;
      kind.reordered = false;
      const auto known =
          std::find_if(kinds.begin(), kinds.end(), [&](const auto& entry) { return entry.first == kind; });
      known == kinds.end() ? kinds.emplace_back(kind, 1).second : ++known->second;
    }
  }
  const auto most =
      std::max_element(kinds.begin(), kinds.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != kinds.end()) {
    content.settings = most->first;
  }
  content.settings.reordered = reordered;
  std::size_t known = 0;
  for (const auto& block : content.blocks) {
    known += block.size();
  }
  if (const auto names = reader.linear_names(); names.size() != known) {
    throw Error(ErrorKind::input, fmt::format("{} has {} packed modules, of which {} are linears of the blocks that "
                                              "config.json describes; the others cannot be converted",
                                              folder.string(), names.size(), known));
  }
  content.read_layer = [&reader, blocks = content.blocks](std::int64_t block, std::int64_t layer) {
    auto linear =
        reader.read_linear(blocks.at(static_cast<std::size_t>(block)).at(static_cast<std::size_t>(layer)).module);
    if (reader.format() == io::ArtifactFormat::gptq && !linear.sym &&
        std::find(linear.zeros.begin(), linear.zeros.end(), 0) != linear.zeros.end()) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: has stored zeros of {} in a gptq (v1) checkpoint, which some engines read as {} and "
                              "others as 0; convert it with the tool that made it",
                              linear.name, (1 << linear.bits) - 1, 1 << linear.bits));
    }
    return linear;
  };
  return content;
}

std::unique_ptr<io::ArtifactWriter> make_artifact_writer(io::ArtifactFormat format, const io::ArtifactContent& content,
                                                         const ModelSpec& model, const io::ArtifactOptions& options) {
  if (format == io::ArtifactFormat::gguf) {
    return make_gguf_writer(content, model, options);
  }
  return io::make_folder_writer(format, content, options);
}

io::ShardFile open_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint) {
  auto shard = store.open(block);
  require_own(store, shard.account(), fingerprint);
  return shard;
}

io::BlockShard read_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint) {
  auto shard = store.read(block);
  require_own(store, shard, fingerprint);
  return shard;
}

}  // namespace gptqd::pipeline
