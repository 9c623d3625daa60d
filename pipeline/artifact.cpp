#include "pipeline/artifact.hpp"

#include <algorithm>

#include "pipeline/fingerprint.hpp"
#include "pipeline/layer_specs.hpp"
#include "version.hpp"

namespace gptqd::pipeline {

namespace {

/// The modules of a block by the phase that they belong to, without the block's prefix; those that are quantized in
/// some block.
nlohmann::json module_groups(const nlohmann::json& fingerprint, const ModelSpec& model) {
  nlohmann::json groups = nlohmann::json::array();
  for (const Phase phase : phases) {
    nlohmann::json names = nlohmann::json::array();
    for (const auto& block : model.blocks) {
      for (const auto& linear : block.group(phase)) {
        const std::string name = linear.module.substr(block.prefix.size());
        if (layer_settings(fingerprint, linear.module) && std::find(names.begin(), names.end(), name) == names.end()) {
          names.push_back(name);
        }
      }
    }
    if (!names.empty()) {
      groups.push_back(std::move(names));
    }
  }
  return groups;
}

/// Whether no quantized linear has a zero point of its own.
bool all_symmetric(const nlohmann::json& fingerprint, const ModelSpec& model) {
  for (const auto& block : model.blocks) {
    for (const auto& linear : block.linears()) {
      const auto settings = layer_settings(fingerprint, linear.module);
      if (settings && !settings->sym) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

nlohmann::json quantization_config(const nlohmann::json& fingerprint, const ModelSpec& model) {
  const auto& spec = fingerprint.at("spec");
  nlohmann::json config = {
      {"quant_method", "gptq"},
      {"bits", spec.at("bits")},
      {"group_size", spec.at("group_size")},
      {"desc_act", spec.at("act_order") == "dynamic"},
      {"sym", spec.at("symmetric")},
      {"lm_head", false},
      {"checkpoint_format", all_symmetric(fingerprint, model) ? "gptq" : "gptq_v2"},
      {"pack_dtype", "int32"},
      {"true_sequential", fingerprint.at("true_sequential")},
      {"static_groups", spec.at("act_order") == "static"},
      {"damp_percent", spec.at("damping")},
      {"modules_in_block_to_quantize", module_groups(fingerprint, model)},
      {"meta",
       {{"quantizer", {fmt::format("gptq-dist:{}", version)}}, {"fingerprint", fingerprint_hash(fingerprint)}}}};
  if (auto dynamic = gptq_dynamic(fingerprint, model); !dynamic.empty()) {
    config["dynamic"] = std::move(dynamic);
  }
  return config;
}

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

io::ArtifactSummary write_artifact(const io::ShardStore& store, const nlohmann::json& fingerprint,
                                   const ModelSpec& model, const io::CheckpointReader& source,
                                   const std::filesystem::path& out, std::int64_t max_shard_bytes,
                                   const std::function<void(const io::BlockShard&)>& seen) {
  const std::string hash = fingerprint_hash(fingerprint);
  auto config = quantization_config(fingerprint, model);
  const bool v1 = config.at("checkpoint_format") == "gptq";
  return io::write_gptq_checkpoint({.source = &source,
                                    .source_folder = source.folder(),
                                    .out = out,
                                    .quantization_config = std::move(config),
                                    .v1 = v1,
                                    .block_linears = quantized_modules(fingerprint, model),
                                    .read_block =
                                        [&](std::int64_t block) {
                                          auto shard = read_shard(store, block, hash);
                                          seen(shard);
                                          return shard;
                                        },
                                    .max_shard_bytes = max_shard_bytes,
                                    .progress = {}});
}

io::BlockShard read_shard(const io::ShardStore& store, std::int64_t block, const std::string& fingerprint) {
  auto shard = store.read(block);
  if (shard.fingerprint != fingerprint) {
    throw Error(ErrorKind::input, fmt::format("{} was made by another run (fingerprint {}, this run's is {}); delete "
                                              "it and run again, or use another --work",
                                              store.shard_path(block).string(), shard.fingerprint, fingerprint));
  }
  return shard;
}

}  // namespace gptqd::pipeline
