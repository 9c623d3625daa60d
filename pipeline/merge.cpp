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

void begin(const io::ShardStore& store, const nlohmann::json& fingerprint, const Source& source) {
  const auto blocks = std::ssize(source.model.blocks);
  require_shards(store, blocks);
  store.write_manifest(blocks, fingerprint);
}

/// One process's part of a merge: some of the files of weights, and what it saw of the blocks on the way.
class Merge {
 public:
  Merge(const io::ShardStore& store, const nlohmann::json& fingerprint, const Source& source,
        const MergeOptions& options)
      : fingerprint_(fingerprint),
        format_(options.format.value_or(default_format(fingerprint))),
        content_(content_of_shards(store, fingerprint, source,
                                   [this](const io::BlockShard& account) {
                                     const std::lock_guard lock(mutex_);
                                     seen_[account.block] = account;
                                   })),
        writer_(make_artifact_writer(format_, content_, source.model, {.max_shard_bytes = options.max_shard_bytes})) {}

  /// Every `ranks`-th file from number `rank` on. @return an account for finish()
  nlohmann::json write_files(const std::filesystem::path& folder, int rank, int ranks) const {
    nlohmann::json files = nlohmann::json::object();
    for (int file = rank; file < writer_->weight_files(); file += ranks) {
      const auto written = writer_->write_weights(file, folder);
      files[std::to_string(file)] = {written.name, written.bytes, written.xxh3_128};
    }
    nlohmann::json blocks = nlohmann::json::array();
    for (const auto& [block, account] : seen_) {
      nlohmann::json linears = nlohmann::json::array();
      for (const auto& linear : account.linears) {
        linears.push_back({linear.name, linear.record});
      }
      blocks.push_back({{"block", block}, {"run", account.run}, {"linears", std::move(linears)}});
    }
    return {{"files", std::move(files)}, {"blocks", std::move(blocks)}};
  }

  /// Writes what is left and makes the folder appear.
  io::ArtifactSummary finish(io::AtomicFolder& folder, const std::vector<nlohmann::json>& accounts,
                             std::int64_t max_fallbacks, LayerTable& table) const {
    std::map<int, io::ArtifactFile> files;
    std::map<std::int64_t, io::BlockShard> blocks;  // those that two files share were seen by both ranks
    for (const auto& account : accounts) {
      for (const auto& [number, file] : account.at("files").items()) {
        files[std::stoi(number)] = {.name = file.at(0), .bytes = file.at(1), .xxh3_128 = file.at(2)};
      }
      for (const auto& entry : account.at("blocks")) {
        io::BlockShard shard{
            .block = entry.at("block"), .fingerprint = {}, .spec = {}, .linears = {}, .run = entry.at("run")};
        for (const auto& linear : entry.at("linears")) {
          shard.linears.emplace_back().name = linear.at(0);
          shard.linears.back().record = linear.at(1);
        }
        blocks[shard.block] = std::move(shard);
      }
    }
    for (const auto& [block, shard] : blocks) {
      table.add(shard);
    }
    check_fallbacks(table, max_fallbacks);
    io::ArtifactSummary summary;
    for (auto& [number, file] : files) {
      summary.files.push_back(std::move(file));
    }
    for (auto& file : writer_->write_rest(folder.path())) {
      summary.files.push_back(std::move(file));
    }
    for (const auto& file : summary.files) {
      summary.bytes += file.bytes;
    }
    add_model_card(model_card(format_, content_, &fingerprint_, &table), folder, summary);
    folder.commit();
    return summary;
  }

 private:
  nlohmann::json fingerprint_;
  io::ArtifactFormat format_;
  std::mutex mutex_;
  std::map<std::int64_t, io::BlockShard> seen_;
  io::ArtifactContent content_;
  std::unique_ptr<io::ArtifactWriter> writer_;
};

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
  begin(store, fingerprint, source);
  Merge work(store, fingerprint, source, options);
  io::AtomicFolder folder(options.out);
  return work.finish(folder, {work.write_files(folder.path(), 0, 1)}, max_fallbacks, table);
}

io::ArtifactSummary merge(comm::World& world, const io::ShardStore& store, const nlohmann::json& fingerprint,
                          const Source& source, const MergeOptions& options, std::int64_t max_fallbacks,
                          LayerTable& table) {
  const auto step = world.long_host_step("merging the shards");
  world.set_activity("merging the shards");
  std::optional<io::AtomicFolder> folder;
  if (world.rank() == 0) {
    begin(store, fingerprint, source);
    folder.emplace(options.out);
  }
  const std::filesystem::path path =
      world.group().broadcast_string(folder ? folder->path().string() : "", 0, "the folder of the artifact");
  Merge work(store, fingerprint, source, options);
  const std::string account = work.write_files(path, world.rank(), world.size()).dump();
  const auto gathered = world.group().all_gather_bytes(std::as_bytes(std::span(account)), "what each rank has merged");
  if (world.rank() != 0) {
    return {};
  }
  std::vector<nlohmann::json> accounts;
  for (const auto& bytes : gathered) {
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    accounts.push_back(nlohmann::json::parse(text, text + bytes.size()));
  }
  return work.finish(*folder, accounts, max_fallbacks, table);
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
