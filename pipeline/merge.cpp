#include "pipeline/merge.hpp"

#include <chrono>
#include <map>
#include <mutex>

#include "io/artifact/companions.hpp"
#include "io/atomic_file.hpp"
#include "io/json_file.hpp"
#include "pipeline/artifact.hpp"
#include "pipeline/family.hpp"
#include "pipeline/fingerprint.hpp"
#include "pipeline/model_card.hpp"
#include "pipeline/work_folder.hpp"

namespace gptqd::pipeline {

namespace {

using Clock = std::chrono::steady_clock;

void add_model_card(const std::string& card, const io::AtomicFolder& folder, io::ArtifactSummary& summary) {
  summary.files.push_back(io::write_text_file(folder.path() / model_card_file, card));
  summary.bytes += summary.files.back().bytes;
}

}  // namespace

bool is_filled(const std::filesystem::path& path) {
  return std::filesystem::exists(path) && !(std::filesystem::is_directory(path) && std::filesystem::is_empty(path));
}

bool artifact_is_complete(const MergeOptions& options, const nlohmann::json& fingerprint) {
  if (!is_filled(options.out)) {
    return false;
  }
  const auto format = options.format.value_or(default_format(fingerprint));
  if (std::filesystem::is_directory(options.out)) {
    if (const auto provenance = io::read_provenance(options.out)) {
      const auto meta =
          io::get_or<nlohmann::json>(provenance->at("facts"), "meta", nlohmann::json::object(), io::provenance_file);
      if (io::get_or<std::string>(meta, "fingerprint", "", io::provenance_file) == fingerprint_hash(fingerprint) &&
          provenance->at("format") == name_of(format)) {
        return true;
      }
    }
  }
  throw Error(ErrorKind::usage, fmt::format("{} exists and is not this run's result as {}; choose another --out, or "
                                            "remove it",
                                            options.out.string(), name_of(format)));
}

void require_shards(const io::ShardStore& store, std::int64_t blocks) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    if (const auto offence = store.obstacle(block); !offence.empty()) {
      throw Error(ErrorKind::input,
                  fmt::format("block {} is not ready for the merge: {}; run the quantization again to complete it",
                              block, offence));
    }
  }
}

void check_fallbacks(const LayerTable& table, std::int64_t most) {
  if (table.fallbacks() > most) {
    throw Error(ErrorKind::input, fmt::format("{} linear(s) fell back to round-to-nearest ({}), --max-fallbacks is {}; "
                                              "the shards are kept: raise it to accept them",
                                              table.fallbacks(), fmt::join(table.fallback_names(), ", "), most));
  }
}

io::ArtifactSummary merge(const io::ShardStore& store, const nlohmann::json& fingerprint, const Source& source,
                          const MergeOptions& options, std::int64_t max_fallbacks, LayerTable& table) {
  const auto blocks = std::ssize(source.model.blocks);
  require_shards(store, blocks);
  store.write_manifest(blocks, fingerprint);
  std::mutex mutex;
  std::map<std::int64_t, io::BlockShard> accounts;
  const auto content = content_of_shards(store, fingerprint, source, [&](const io::BlockShard& account) {
    const std::lock_guard lock(mutex);
    accounts[account.block] = account;
  });
  const auto format = options.format.value_or(default_format(fingerprint));
  const auto writer = make_artifact_writer(format, content, source.model, {.max_shard_bytes = options.max_shard_bytes});
  io::AtomicFolder folder(options.out);
  auto summary = write_artifact(*writer, folder);
  for (const auto& [block, account] : accounts) {
    table.add(account);
  }
  check_fallbacks(table, max_fallbacks);
  add_model_card(model_card(format, content, &fingerprint, &table), folder, summary);
  folder.commit();
  return summary;
}

std::int64_t total_bytes(const io::CheckpointReader& tensors) {
  std::int64_t bytes = 0;
  for (const auto& file : tensors.files()) {
    bytes += file.bytes;
  }
  return bytes;
}

nlohmann::json model_identity(const Source& source) {
  nlohmann::json files = nlohmann::json::array();
  for (const auto& file : source.tensors->files()) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"header", file.header_hash}});
  }
  return {{"config", fingerprint_hash(source.config)}, {"files", std::move(files)}};
}

void require_format(const nlohmann::json& fingerprint, const Source& source, const MergeOptions& options) {
  const auto format = options.format.value_or(default_format(fingerprint));
  const auto content = content_of_source(fingerprint, source);
  make_artifact_writer(format, content, source.model, {.max_shard_bytes = options.max_shard_bytes});
}

QuantizeSummary merge_shards(const std::filesystem::path& work, const std::filesystem::path& source_folder,
                             const MergeOptions& options, const RunObserver& observer) {
  const auto start = Clock::now();
  const RunRecord record = read_run_record(work);
  const std::filesystem::path folder =
      source_folder.empty() ? std::filesystem::path(io::get<std::string>(record.facts, "model", "run.json"))
                            : source_folder;
  const Source source = open_source(folder);
  const auto differences =
      fingerprint_differences(io::get<nlohmann::json>(record.fingerprint, "model", "run.json"), model_identity(source));
  if (!differences.empty()) {
    throw Error(ErrorKind::input, fmt::format("{} is not the model that the shards of {} were made from ({})",
                                              folder.string(), work.string(), fmt::join(differences, "; ")));
  }
  if (artifact_is_complete(options, record.fingerprint)) {
    observer.note(fmt::format("{} is complete already", options.out.string()));
    return {.out = options.out, .already_complete = true};
  }
  LayerTable table;
  const auto artifact =
      merge(io::ShardStore(work), record.fingerprint, source, options, std::numeric_limits<std::int64_t>::max(), table);
  return {.out = options.out,
          .artifact_bytes = artifact.bytes,
          .source_bytes = total_bytes(*source.tensors),
          .seconds = std::chrono::duration<double>(Clock::now() - start).count(),
          .blocks_found = std::ssize(source.model.blocks),
          .loss_ratio = table.loss_ratio()};
}

io::ArtifactSummary convert_artifact(const std::filesystem::path& artifact, const MergeOptions& options,
                                     const RunObserver& observer) {
  require(options.format.has_value(), "convert: no format");
  return with_context(fmt::format("converting {} to {}", artifact.string(), name_of(*options.format)), [&] {
    if (!io::ArtifactReader::is_artifact(artifact)) {
      throw Error(ErrorKind::input, fmt::format("{} is no quantized model (its config.json has no quantization_config)",
                                                artifact.string()));
    }
    const auto reader = io::ArtifactReader::open(artifact);
    const ModelSpec model = describe_model(io::read_json(artifact / "config.json"), reader->tensors());
    const auto content = content_of_artifact(*reader, artifact, model);
    const auto writer = make_artifact_writer(*options.format, content, model,
                                             {.max_shard_bytes = options.max_shard_bytes, .progress = observer.note});
    io::AtomicFolder folder(options.out);
    auto summary = write_artifact(*writer, folder);
    add_model_card(model_card(*options.format, content, nullptr, nullptr), folder, summary);
    folder.commit();
    return summary;
  });
}

}  // namespace gptqd::pipeline
