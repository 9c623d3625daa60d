#include "pipeline/artifact.hpp"

#include "pipeline/fingerprint.hpp"
#include "version.hpp"

namespace gptqd::pipeline {

nlohmann::json quantization_config(const nlohmann::json& fingerprint, const ModelSpec& model) {
  const auto& spec = fingerprint.at("spec");
  const bool symmetric = spec.at("symmetric");
  const bool dynamic = spec.at("act_order") == "dynamic";
  nlohmann::json groups = nlohmann::json::array();
  const auto& block = model.blocks.front();
  for (const Phase phase : phases) {
    nlohmann::json names = nlohmann::json::array();
    for (const auto& linear : block.group(phase)) {
      names.push_back(linear.module.substr(block.prefix.size()));
    }
    groups.push_back(std::move(names));
  }
  return {{"quant_method", "gptq"},
          {"bits", spec.at("bits")},
          {"group_size", spec.at("group_size")},
          {"desc_act", dynamic},
          {"sym", symmetric},
          {"lm_head", false},
          {"checkpoint_format", symmetric ? "gptq" : "gptq_v2"},
          {"pack_dtype", "int32"},
          {"true_sequential", fingerprint.at("true_sequential")},
          {"static_groups", spec.at("act_order") == "static"},
          {"damp_percent", spec.at("damping")},
          {"modules_in_block_to_quantize", std::move(groups)},
          {"meta",
           {{"quantizer", {fmt::format("gptq-dist:{}", version)}}, {"fingerprint", fingerprint_hash(fingerprint)}}}};
}

std::vector<std::vector<std::string>> quantized_modules(const ModelSpec& model) {
  std::vector<std::vector<std::string>> modules;
  for (const auto& block : model.blocks) {
    auto& names = modules.emplace_back();
    for (const auto& linear : block.linears()) {
      names.push_back(linear.module);
    }
  }
  return modules;
}

io::ArtifactSummary write_artifact(const io::ShardStore& store, const nlohmann::json& fingerprint,
                                   const ModelSpec& model, const io::CheckpointReader& source,
                                   const std::filesystem::path& out, std::int64_t max_shard_bytes,
                                   const std::function<void(const io::BlockShard&)>& seen) {
  const std::string hash = fingerprint_hash(fingerprint);
  return io::write_gptq_checkpoint({.source = &source,
                                    .source_folder = source.folder(),
                                    .out = out,
                                    .quantization_config = quantization_config(fingerprint, model),
                                    .v1 = fingerprint.at("spec").at("symmetric").get<bool>(),
                                    .block_linears = quantized_modules(model),
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
