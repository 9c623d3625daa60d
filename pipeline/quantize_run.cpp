#include "pipeline/quantize_run.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <future>
#include <numeric>

#include "comm/process_grid.hpp"
#include "io/atomic_file.hpp"
#include "io/folder_lock.hpp"
#include "io/json_file.hpp"
#include "kernels/available_memory.hpp"
#include "kernels/base/fault_point.hpp"
#include "kernels/base/human_seconds.hpp"
#include "pipeline/activation_checkpoint.hpp"
#include "pipeline/artifact.hpp"
#include "pipeline/block_loader.hpp"
#include "pipeline/block_quantizer.hpp"
#include "pipeline/family.hpp"
#include "pipeline/fingerprint.hpp"
#include "pipeline/merge.hpp"
#include "pipeline/report.hpp"
#include "pipeline/same_run.hpp"
#include "pipeline/source.hpp"
#include "pipeline/synthetic.hpp"
#include "pipeline/work_folder.hpp"
#include "version.hpp"

namespace gptqd::pipeline {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_format(const ModelSpec& model, const LayerSpecs& layers) {
  for (const auto& block : model.blocks) {
    for (const auto& linear : block.linears()) {
      const auto* spec = layers.find(linear.module);
      const auto obstacle =
          spec == nullptr ? std::nullopt : io::format_obstacle(linear.rows, linear.cols, spec->bits, spec->group_size);
      if (obstacle) {
        throw Error(ErrorKind::usage,
                    fmt::format("{} [{}, {}] cannot be written at {} bits, group size {}: {}", linear.module,
                                linear.rows, linear.cols, spec->bits, spec->group_size, *obstacle));
      }
    }
  }
}

nlohmann::json make_fingerprint(const Source& source, const Plan& plan, const QuantizeConfig& config,
                                const LayerSpecs& layers, const std::optional<io::TokenWindows>& windows,
                                const Backend& backend) {
  nlohmann::json calibration;
  if (windows) {
    calibration = {{"samples", windows->samples}, {"seqlen", windows->seqlen}, {"hash", windows->hash()}};
  }
  nlohmann::json fingerprint = {{"format_version", 1},
                                {"model", model_identity(source)},
                                {"calibration", std::move(calibration)},
                                {"spec", gptq::to_json(layers.base())},
                                {"partition", plan.partition.to_json()},
                                {"micro_batch_samples", plan.micro_batch_samples},
                                {"true_sequential", config.true_sequential},
                                {"propagate", name_of(config.propagation)},
                                {"environment", {{"tool", version}, {"backend", backend.describe()}}}};
  if (auto differing = layers.to_json(); !differing.empty()) {
    fingerprint["layers"] = std::move(differing);
  }
  return fingerprint;
}

/// Makes the folder that `path` will lie in: a place that cannot be written is noticed before hours of work, not after.
void require_writable(const std::filesystem::path& path, std::string_view option) {
  const auto place = std::filesystem::absolute(path).lexically_normal();
  const auto folder = place.has_filename() ? place.parent_path() : place.parent_path().parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error && ::access(folder.c_str(), W_OK | X_OK) != 0) {
    error = std::error_code(errno, std::generic_category());
  }
  if (error) {
    throw Error(ErrorKind::io, fmt::format("{} {}: nothing can be written there: {}; choose another place", option,
                                           path.string(), error.message()));
  }
}

MergeOptions merge_options(const QuantizeConfig& config) {
  return {.out = config.out, .format = config.format, .max_shard_bytes = config.max_shard_bytes};
}

/// What was found, what is made again, and how long that takes as far as the shards tell.
void describe_restart(const WorkState& work, std::int64_t first, bool with_replay, const RunObserver& observer) {
  for (const auto block : work.blocks_that_are(io::ShardStatus::damaged)) {
    observer.note(fmt::format("block {}: the shard is damaged and will be made again: {}", block,
                              work.blocks[static_cast<std::size_t>(block)].reason));
  }
  const auto valid = work.blocks_that_are(io::ShardStatus::valid);
  if (valid.empty()) {
    return;
  }
  if (first > 0) {
    observer.note(fmt::format("going on from the snapshot of the hidden states behind block {}", first - 1));
  }
  const auto total = std::ssize(work.blocks);
  const auto missing = total - std::ssize(valid);
  std::string plan = fmt::format("found {} of {} blocks finished ({})", valid.size(), total, describe_numbers(valid));
  if (missing == 0) {
    observer.note(plan + "; the merge is left");
    return;
  }
  plan += fmt::format("; computing the other {}", missing);
  if (with_replay && work.to_replay(first) > 0) {
    plan += fmt::format(", replaying {}{}", work.to_replay(first),
                        work.replay_seconds
                            ? fmt::format(" (about {})", human_seconds(*work.replay_seconds *
                                                                       static_cast<double>(work.to_replay(first))))
                            : "");
  }
  if (const auto seconds = work.estimated_seconds(first, with_replay)) {
    plan += fmt::format("; about {} in all, if blocks take as long as before", human_seconds(*seconds));
  }
  observer.note(plan);
}

/// What rank 0 found on disk, for all ranks.
struct Found {
  std::unique_ptr<io::FolderLock> lock;  ///< of rank 0
  nlohmann::json fingerprint;
  WorkState work;                   ///< at rank 0
  std::vector<std::uint8_t> valid;  ///< a flag a block
  std::int64_t first = 0;           ///< blocks before this one need not be gone through: a snapshot stands for them
  bool complete = false;            ///< OUT is there
};

/// Makes the work folder where it is missing and takes its lock.
std::unique_ptr<io::FolderLock> lock_work_folder(comm::World& world, const std::filesystem::path& work,
                                                 const RunObserver& observer) {
  std::error_code error;
  std::filesystem::create_directories(work, error);
  if (error) {
    throw Error(
        ErrorKind::io,
        fmt::format("cannot make the work folder {}: {}; choose another --work (or --out, beside which it lies)",
                    work.string(), error.message()));
  }
  auto lock = std::make_unique<io::FolderLock>(
      lock_path(work), [&world] { return world.activity(); }, [&world](const Error& lost) { world.fail(lost); });
  if (lock->taken_over()) {
    const auto& holder = lock->taken_over()->holder;
    observer.note(fmt::format("the run before did not end in order{}; its lock was taken over",
                              holder ? ": " + holder->describe() : ""));
  }
  return lock;
}

/// Rank 0's part of look_at_disk.
Found open_work(comm::World& world, const QuantizeConfig& config, const Source& source, const nlohmann::json& wanted,
                const RunObserver& observer) {
  const auto step = world.long_host_step("looking at the work folder");
  Found found;
  require_writable(config.out, "--out");
  if (config.report) {
    require_writable(*config.report, "--report");
  }
  const RunRecord own{
      .fingerprint = wanted,
      .facts = {{"model", std::filesystem::absolute(config.model).string()}, {"blocks", source.model.blocks.size()}}};
  const bool is_known = std::filesystem::exists(fingerprint_path(config.work));
  const bool fresh = config.restart == RestartMode::fresh;
  if (fresh && is_filled(config.out)) {
    throw Error(ErrorKind::usage,
                fmt::format("--restart fresh: {} exists; remove it, or choose another --out", config.out.string()));
  }
  if (!is_known) {
    artifact_is_complete(merge_options(config), wanted);  // refuses what is in the way before a work folder is made
  } else if (!fresh) {
    found.fingerprint = open_work_folder(config.work, own, config.allow_mixed, observer.note).fingerprint;
    found.complete = artifact_is_complete(merge_options(config), found.fingerprint);
    if (found.complete) {
      found.valid.assign(source.model.blocks.size(), 1);
      return found;
    }
  }
  found.lock = lock_work_folder(world, config.work, observer);
  if (fresh && is_known) {
    discard_work(config.work);
    write_run_record(config.work, own);
    observer.note(fmt::format("--restart fresh: what {} held is discarded", config.work.string()));
  }
  if (!is_known || fresh) {
    found.fingerprint = open_work_folder(config.work, own, config.allow_mixed, observer.note).fingerprint;
    found.complete = artifact_is_complete(merge_options(config), found.fingerprint);
  }
  const io::ShardStore store(config.work);
  store.remove_stale_temporaries();
  found.work = look_at_work(store, std::ssize(source.model.blocks), true);
  for (const auto& state : found.work.blocks) {
    found.valid.push_back(state.status == io::ShardStatus::valid ? 1 : 0);
  }
  return found;
}

Found look_at_disk(comm::World& world, const QuantizeConfig& config, const Source& source, const Plan& plan,
                   const nlohmann::json& wanted, const RunObserver& observer) {
  Found found;
  if (world.rank() == 0) {
    found = open_work(world, config, source, wanted, observer);
  }
  found.fingerprint = nlohmann::json::parse(world.group().broadcast_string(found.fingerprint.dump(), 0, "fingerprint"));
  found.valid.resize(source.model.blocks.size());
  world.group().broadcast(std::as_writable_bytes(std::span(found.valid)), 0, "finished blocks");
  found.complete = world.group().broadcast_value<std::uint8_t>(found.complete ? 1 : 0, 0, "state of the output") != 0;
  if (!found.complete) {
    const bool calibrated = plan.samples > 0;
    if (calibrated) {
      const auto snapshot = choose_snapshot(world, io::SnapshotStore(config.work), plan, found.work, observer.note);
      found.first = snapshot ? *snapshot + 1 : 0;
    }
    if (world.rank() == 0) {
      describe_restart(found.work, found.first, calibrated, observer);
    }
  }
  return found;
}

double block_loss_ratio(const LayerTable& table) {
  return table.loss_ratio().value_or(std::numeric_limits<double>::quiet_NaN());
}

/// A stage's way through its blocks.
class StageRun {
 public:
  StageRun(comm::World& world, Backend& backend, const QuantizeConfig& config, const LayerSpecs& layers,
           const Source& source, const Plan& plan, const Found& found, const RunObserver& observer)
      : world_(world),
        backend_(backend),
        config_(config),
        layers_(layers),
        source_(source),
        plan_(plan),
        found_(found),
        observer_(observer),
        hash_(fingerprint_hash(found.fingerprint)),
        grid_(world, plan.grid.stages),
        stream_(backend.create_stream()),
        write_stream_(backend.create_stream()),
        communicator_(comm::make_communicator(grid_.replicas_group(), backend)),
        world_communicator_(plan.grid.stages > 1 ? comm::make_communicator(world.group(), backend) : nullptr),
        store_(config.work),
        beside_(backend.create_background_stream()),
        team_{.backend = backend,
              .stream = *stream_,
              .communicator = *communicator_,
              .group = grid_.replicas_group(),
              .beside = beside_.get()},
        quantizer_([&] {
          const auto step = world.long_host_step("taking memory for the activations");  // locking pages takes its time
          return BlockQuantizer(
              team_, source.model, plan, grid_.replica(),
              {.layers = layers, .true_sequential = config.true_sequential, .propagation = config.propagation});
        }()),
        loader_(
            {.backend = backend,
             .stream = *stream_,
             .communicator = *communicator_,
             .group = grid_.replicas_group(),
             .progress = world.progress(),
             .model = source.model,
             .tensors = *source.tensors},
            [this](std::int64_t block) { return finished_block(block); },
            [this](std::int64_t block) { return plan_.owner_of(block); }),
        checkpoint_({.world = world,
                     .backend = backend,
                     .stream = *stream_,
                     .group = grid_.replicas_group(),
                     .plan = plan,
                     .replica = grid_.replica(),
                     .fingerprint = hash_,
                     .hidden = source.model.hidden},
                    io::SnapshotStore(config.work), found.first > 0 ? std::optional(found.first - 1) : std::nullopt) {
    const auto missing = std::find(found.valid.rbegin(), found.valid.rend(), 0);
    const auto behind_last_missing = std::distance(missing, found.valid.rend());
    const auto own = plan.stage_blocks(grid_.stage());
    const auto first = std::clamp(found.first, own.first, own.end());
    end_ = behind_last_missing;
    blocks_ = {.first = first, .count = std::clamp<std::int64_t>(end_ - first, 0, own.end() - first)};
    hand_on_ = end_ > own.end() && found.first < own.end();
    begins_from_snapshot_ = found.first > 0 && found.first >= own.first && found.first < own.end();
  }

  void run(const std::optional<io::TokenWindows>& windows) {
    try {
      prefetch_after(blocks_.first - 1);
      take_memory_for_writing();
      if (windows) {
        start(*windows);
      }
      if (windows && hand_on_ && config_.propagation == Propagation::unquantized) {
        hand_on_unquantized();
      }
      mark_ = Clock::now();
      for (std::int64_t block = blocks_.first; block < blocks_.end(); ++block) {
        with_context(fmt::format("working on block {}", block), [&] { run_block(block); });
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::stopped) {
        end_job(error);
      }
      stopped_ = true;  // on all ranks of the stage, at the same place
      loader_.give_up();
    }
    finish_writing();
    checkpoint_.finish();
    if (windows && hand_on_ && !handed_on_) {
      hand_on();
    }
  }

  /// Asked to before all its blocks were done.
  bool stopped() const { return stopped_; }
  std::int64_t blocks_computed() const { return computed_; }
  /// One object a computed block: what this rank spent its seconds on.
  const nlohmann::json& seconds() const { return seconds_; }
  double flops() const { return flops_; }

 private:
  static constexpr std::string_view whether_to_go_on = "whether the run goes on";

  /// Tells of the error while all is still there: giving back what is on a lost device may take its time. A shard that
  /// is being written is kept.
  [[noreturn]] void end_job(const Error& error) {
    try {
      finish_writing();
    } catch (const Error&) {
      // The first one counts.
    }
    world_.fail(error);
  }

  bool is_leader() const { return grid_.replica() == 0; }
  bool is_found(std::int64_t block) const { return found_.valid[static_cast<std::size_t>(block)] != 0; }

  void start(const io::TokenWindows& windows) {
    if (blocks_.count == 0 && !hand_on_) {
      return;
    }
    if (begins_from_snapshot_) {
      world_.set_activity(fmt::format("reading the hidden states behind block {}", found_.first - 1));
      checkpoint_.load(found_.first - 1, quantizer_.hidden());
      return;
    }
    if (grid_.stage() == 0) {
      world_.set_activity("embedding the calibration samples");
      quantizer_.embed(windows, *source_.tensors);
      return;
    }
    const auto hidden = quantizer_.hidden();
    world_.set_activity("waiting for the hidden states of the stage before");
    std::byte goes_on{};
    world_.group().receive(std::span(&goes_on, 1), grid_.previous_stage_rank(), whether_to_go_on);
    if (goes_on == std::byte{0}) {
      throw Error(ErrorKind::stopped, "the stage before has stopped");
    }
    world_communicator_->receive(*stream_, hidden.data, hidden.bytes(), grid_.previous_stage_rank(), "hidden states")
        .wait();
  }

  void hand_on() {
    const auto hidden = quantizer_.hidden();
    world_.set_activity("handing hidden states to the next stage");
    const int next = grid_.next_stage_rank();
    const std::byte goes_on{static_cast<unsigned char>(stopped_ ? 0 : 1)};
    handed_on_ = true;
    world_.group().send(std::span(&goes_on, 1), next, whether_to_go_on);
    if (!stopped_) {
      world_communicator_->send(*stream_, hidden.data, hidden.bytes(), next, "hidden states").wait();
      stream_->synchronize();
    }
  }

  /// A boundary: the stage's ranks agree on whether one of them has been asked to stop. Collective.
  /// @throws Error (stopped) on all of them
  void stop_if_asked() {
    const int asked = world_.stop_requested() ? 1 : 0;
    if (grid_.replicas_group().all_max(asked, "whether to stop") != 0) {
      throw Error(ErrorKind::stopped, "asked to stop");
    }
  }

  /// Before a block that is to be computed: would it be finished in time, at the pace so far?
  void stop_before_the_end() {
    if (!is_leader() || !config_.finish_by || computed_seconds_.empty()) {
      return;
    }
    const std::chrono::duration<double> longest(*std::max_element(computed_seconds_.begin(), computed_seconds_.end()));
    if (Clock::now() + longest > *config_.finish_by) {
      world_.request_stop("the job's end, before which the next block would not be finished");
    }
  }

  /// Float activations wait for no quantization: the next stage gets its own before this one begins to quantize, at the
  /// price of a second forward pass here.
  void hand_on_unquantized() {
    const auto hidden = quantizer_.hidden();
    const Buffer kept = backend_.allocate(hidden.bytes());
    backend_.copy(*stream_, kept.data(), hidden.data, hidden.bytes());
    for (std::int64_t block = blocks_.first; block < blocks_.end(); ++block) {
      stop_if_asked();
      world_.set_activity(fmt::format("block {}, running ahead for the next stage", block));
      const auto weights = loader_.load(block);
      prefetch_after(block);
      quantizer_.replay(source_.model.blocks[static_cast<std::size_t>(block)], weights);
    }
    hand_on();
    backend_.copy(*stream_, hidden.data, kept.data(), hidden.bytes());
    prefetch_after(blocks_.first - 1);
  }

  bool is_skipped(std::int64_t block) const { return is_found(block) && !needs_calibration(layers_); }

  /// Begins to read the next block that is this rank's to read: early, for each rank has all the others' blocks' time.
  void prefetch_after(std::int64_t block) {
    for (std::int64_t next = block + 1; next < blocks_.end(); ++next) {
      if (plan_.owner_of(next) == grid_.replica() && !is_skipped(next)) {
        loader_.prefetch(next);
        return;
      }
    }
  }

  PackedSource finished_block(std::int64_t block) const {
    if (!is_found(block) || config_.propagation == Propagation::unquantized) {
      return {};
    }
    auto shard = std::make_shared<io::BlockShard>(read_shard(store_, block, hash_));
    return [shard](const std::string& module) -> std::optional<io::PackedLinear> {
      for (const auto& linear : shard->linears) {
        if (linear.name == module) {
          return linear;
        }
      }
      return std::nullopt;
    };
  }

  void run_block(std::int64_t block) {
    if (is_skipped(block)) {
      return;
    }
    if (!is_found(block)) {
      stop_before_the_end();
    }
    stop_if_asked();
    const auto start = Clock::now();
    const double idle = stream_->idle_seconds();
    const auto transfers = communicator_->totals();
    const auto& spec = source_.model.blocks[static_cast<std::size_t>(block)];
    world_.set_activity(fmt::format("block {}, loading", block));
    fault_point("block.load");
    auto weights = loader_.load(block);
    prefetch_after(block);
    const double loading = seconds_since(start);
    if (is_found(block)) {
      world_.set_activity(fmt::format("block {}, replaying", block));
      fault_point("block.replay");
      quantizer_.replay(spec, weights);
      save_snapshot(block);
      report(block, start, std::nullopt);
      return;
    }
    auto result = quantizer_.quantize(
        spec, weights,
        [&](Phase phase) {
          world_.set_activity(fmt::format("block {}, {}", block, name_of(phase)));
          fault_point("phase");
          stop_if_asked();
        },
        [&] {
          if (block + 1 < blocks_.end() && !is_skipped(block + 1)) {
            loader_.start(block + 1);
          }
        });
    fault_point("block.done");
    auto seconds = result.seconds.to_json();
    LayerTable table;
    for (const auto& linear : result.linears) {
      table.add(block, linear.record.to_json(), linear.record.seconds);
    }
    count_fallbacks(table);
    const auto before_writing = Clock::now();
    // A rank writes one block at a time, beside the work on the next ones, until its turn comes again: a kill loses the
    // block in flight and at most one more a rank.
    if (plan_.owner_of(block) == grid_.replica()) {
      finish_writing();
      start_writing(block, std::move(result));
    } else if (writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
      finish_writing();  // to hear of its failure
    }
    save_snapshot(block);
    ++computed_;
    flops_ += model_flops(spec, plan_.tokens());
    add_seconds(block, std::move(seconds), loading, seconds_since(before_writing), idle, transfers);
    report(block, start, block_loss_ratio(table));
  }

  void add_seconds(std::int64_t block, nlohmann::json parts, double loading, double writing, double idle_before,
                   const comm::TransferTotals& before) {
    const auto transfers = communicator_->totals();
    parts["block"] = block;
    parts["load"] = loading;
    parts["write"] = writing;
    parts["wall"] = seconds_since(std::exchange(mark_, Clock::now()));
    parts["idle"] = stream_->idle_seconds() - idle_before;
    parts["exposed_transfers"] = transfers.exposed_seconds - before.exposed_seconds;
    parts["transfers"] = transfers.seconds - before.seconds;
    parts["transfer_bytes"] = transfers.bytes - before.bytes;
    seconds_.push_back(std::move(parts));
  }

  /// The hidden states are worth keeping where a block behind this one is still to be computed.
  void save_snapshot(std::int64_t block) {
    if (config_.snapshot_every > 0 && (block + 1) % config_.snapshot_every == 0 && block + 1 < end_ &&
        needs_calibration(layers_)) {
      checkpoint_.save(block, quantizer_.hidden());
    }
  }

  /// Beside the start: page-locked memory for a block's codes, which the first shard would otherwise wait for, and the
  /// device with it. It stays in the backend's pool.
  void take_memory_for_writing() {
    std::int64_t most = 0;
    for (std::int64_t block = blocks_.first; block < blocks_.end(); ++block) {
      std::int64_t bytes = 0;
      for (const auto& linear : source_.model.blocks[static_cast<std::size_t>(block)].linears()) {
        if (const auto* spec = layers_.find(linear.module)) {
          bytes += FetchedLinear::host_bytes(linear.rows, linear.cols, *spec);
        }
      }
      most = std::max(most, bytes);
    }
    if (backend_.memory_kind() != MemoryKind::host && most > 0) {
      writing_ = std::async(std::launch::async, [this, most] { backend_.allocate_host(most); });
    }
  }

  /// Fetches the block's codes and writes them, beside the next block's work.
  void start_writing(std::int64_t block, BlockResult result) {
    nlohmann::json seconds = nlohmann::json::object();
    for (const auto& linear : result.linears) {
      seconds[linear.name] = linear.record.seconds;
    }
    io::BlockShard shard{
        .block = block, .fingerprint = hash_, .spec = gptq::to_json(layers_.base()), .linears = {}, .run = {}};
    shard.run = {{"host", world_.host_name()},
                 {"ranks", world_.size()},
                 {"stages", plan_.grid.stages},
                 {"seconds", result.seconds.to_json()},
                 {"linear_seconds", std::move(seconds)}};
    write_stream_->wait(stream_->record());
    writing_ = std::async(std::launch::async, [this, shard = std::move(shard), result = std::move(result)]() mutable {
      std::vector<FetchedLinear> fetched;
      for (const auto& linear : result.linears) {
        fetched.emplace_back(backend_, *write_stream_, linear, *layers_.find(linear.name));
      }
      write_stream_->synchronize();
      result.linears.clear();
      for (auto& linear : fetched) {
        shard.linears.push_back(std::move(linear).packed());
        world_.progress().tick();
      }
      store_.write(shard);
      shard.linears.clear();  // hundreds of megabytes, not in the thread that asks how it went
      world_.count_saved();
      world_.progress().tick();
    });
  }

  void count_fallbacks(const LayerTable& table) {
    fallbacks_ += table.fallbacks();
    if (fallbacks_ > config_.max_fallbacks) {
      throw Error(ErrorKind::input,
                  fmt::format("{} linear(s) fell back to round-to-nearest, --max-fallbacks is {}: H of {} is not "
                              "positive definite at any damping; "
                              "give more or other calibration text, or allow it with --max-fallbacks",
                              fallbacks_, config_.max_fallbacks, fmt::join(table.fallback_names(), ", ")));
    }
  }

  void finish_writing() {
    if (writing_.valid()) {
      with_context("writing a shard", [&] { writing_.get(); });
    }
  }

  void report(std::int64_t block, Clock::time_point start, std::optional<double> ratio) {
    if (!is_leader()) {
      return;
    }
    const double seconds = seconds_since(start);
    (ratio ? computed_seconds_ : replayed_seconds_).push_back(seconds);
    const auto mean = [](const std::vector<double>& values, double otherwise) {
      return values.empty() ? otherwise
                            : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    };
    BlockProgress progress{.block = block,
                           .blocks = plan_.blocks,
                           .done = block + 1 - blocks_.first,
                           .to_do = blocks_.count,
                           .replayed = !ratio,
                           .seconds = seconds,
                           .loss_ratio = ratio};
    for (std::int64_t next = block + 1; next < blocks_.end(); ++next) {
      progress.eta_seconds += is_found(next) ? mean(replayed_seconds_, seconds) : mean(computed_seconds_, seconds);
    }
    if (ratio && std::isnan(*ratio)) {
      progress.loss_ratio.reset();
    }
    observer_.block(progress);
  }

  comm::World& world_;
  Backend& backend_;
  const QuantizeConfig& config_;
  const LayerSpecs& layers_;
  const Source& source_;
  const Plan& plan_;
  const Found& found_;
  const RunObserver& observer_;
  std::string hash_;
  comm::ProcessGrid grid_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Stream> write_stream_;  ///< of the thread that writes
  std::unique_ptr<comm::Communicator> communicator_;
  std::unique_ptr<comm::Communicator> world_communicator_;  ///< between stages, where there are several
  io::ShardStore store_;
  std::unique_ptr<Stream> beside_;
  gptq::Team team_;
  BlockQuantizer quantizer_;
  BlockLoader loader_;
  ActivationCheckpoint checkpoint_;
  IndexRange blocks_;     ///< this stage's, up to the last missing one
  std::int64_t end_ = 0;  ///< behind the last missing block of all stages
  bool hand_on_ = false;  ///< a later stage has something to do
  bool begins_from_snapshot_ = false;
  std::future<void> writing_;
  bool stopped_ = false;
  bool handed_on_ = false;
  std::int64_t computed_ = 0;
  double flops_ = 0;
  nlohmann::json seconds_ = nlohmann::json::array();
  Clock::time_point mark_;  ///< where the last block ended
  std::int64_t fallbacks_ = 0;
  std::vector<double> computed_seconds_;
  std::vector<double> replayed_seconds_;
};

/// By what the job was asked to stop, on every rank: the one that got the signal may know alone. Collective.
std::string cause_of_stop(comm::World& world) {
  const std::string own = world.stop_cause();
  const auto causes = world.group().all_gather_bytes(std::as_bytes(std::span(own)), "why the job stops");
  const auto known = std::find_if(causes.begin(), causes.end(), [](const auto& cause) { return !cause.empty(); });
  return known == causes.end() ? "" : std::string(reinterpret_cast<const char*>(known->data()), known->size());
}

/// A synthetic model has no tokenizer: without token files its tokens are generated.
io::TokenWindows calibration(comm::World& world, const ModelSpec& model, const QuantizeConfig& config) {
  constexpr std::int64_t samples = 128;
  constexpr std::int64_t seqlen = 2048;
  const auto& request = config.calibration;
  if (request.sources.empty()) {
    return synthetic_tokens(model.vocabulary, request.samples.value_or(samples),
                            request.seqlen.value_or(std::min(seqlen, model.max_positions)), request.seed);
  }
  return calibration_windows(world, model, config.model, request);
}

gptq::Partition resolved(gptq::Partition partition, const Backend& backend) {
  const auto preferred = backend.preferred_pieces();
  for (const auto& [size, choice] : {std::pair(&partition.panel_columns, preferred.panel_columns),
                                     std::pair(&partition.row_tile, preferred.row_tile)}) {
    if (*size == 0) {
      *size = choice;
    }
  }
  partition.whole_columns = preferred.whole_columns;
  return partition;
}

MemorySettings memory_settings(const ModelSpec& model, const QuantizeConfig& config, const gptq::QuantSpec& spec,
                               const Backend& backend) {
  return {.spec = spec,
          .kind = backend.memory_kind(),
          .compute = backend.compute_dtype(model.dtype),
          .gram_tokens = backend.preferred_pieces().gram_tokens,
          .keeps_hidden_before_block = !config.true_sequential && config.propagation == Propagation::quantized};
}

/// The least that a rank has left: the same answer on every rank.
MemoryBytes available_to_each(comm::World& world, const Backend& backend) {
  const std::int64_t host = available_host_bytes() / world.local_size();
  const std::int64_t device = backend.memory_kind() == MemoryKind::host ? host : available_bytes(backend);
  return {.device = -world.group().all_max(-device, "memory left"),
          .host = -world.group().all_max(-host, "memory left")};
}

/// Says it before hours of work, where more than there is may be needed.
void note_shortage(const Plan& plan, const ModelSpec& model, const MemoryBytes& available,
                   const RunObserver& observer) {
  const auto needs = plan.bytes_per_rank(model).most;
  const auto gigabytes = [](std::int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  const auto note = [&](std::int64_t needed, std::int64_t left, std::string_view where) {
    if (needed > left) {
      observer.note(
          fmt::format("a rank needs about {:.2f} GB {} and has {:.2f} GB left: the run may end for want of "
                      "memory; use more ranks{}, fewer --samples or a shorter --seqlen",
                      gigabytes(needed), where, gigabytes(left),
                      plan.activations == Activations::resident ? ", --activations parked" : ""));
    }
  };
  note(needs.device, available.device, plan.memory.kind == MemoryKind::host ? "of memory" : "on its GPU");
  note(needs.host, available.host, "of page-locked host memory");
}

/// The account of a run that ends with its shards.
void read_layers(const io::ShardStore& store, const nlohmann::json& fingerprint, std::int64_t blocks,
                 std::int64_t max_fallbacks, LayerTable& table) {
  require_shards(store, blocks);
  for (std::int64_t block = 0; block < blocks; ++block) {
    table.add(read_shard(store, block, fingerprint_hash(fingerprint)));
    check_fallbacks(table, max_fallbacks);
  }
  store.write_manifest(blocks, fingerprint);
}

}  // namespace

QuantizeSummary run_quantize(comm::World& world, Backend& backend, const QuantizeConfig& config,
                             const RunObserver& observer) {
  const auto start = Clock::now();
  const Source source = open_source(config.model);
  gptq::QuantSpec spec = config.spec;
  spec.scale_format = source.model.dtype == DType::bf16 ? ScaleFormat::bf16_and_f16 : ScaleFormat::f16;
  gptq::validate(spec);
  auto layers = LayerSpecs::resolve(source.model, spec, config.layer_rules, config.choose_clip);
  check_format(source.model, layers);

  std::optional<io::TokenWindows> windows;
  if (needs_calibration(layers)) {
    windows = calibration(world, source.model, config);
    if (spec.reference) {
      spec.dead_diagonal = static_cast<double>(windows->samples) / 2;  // 1 on the scale of 2/N XᵀX
      layers = LayerSpecs::resolve(source.model, spec, config.layer_rules, config.choose_clip);
    }
  }
  const MemoryBytes available = available_to_each(world, backend);
  const Plan plan = make_plan(source.model, {.ranks = world.size(),
                                             .stages = config.stages,
                                             .samples = windows ? windows->samples : 0,
                                             .seqlen = windows ? windows->seqlen : 0,
                                             .micro_batch_tokens = config.micro_batch_tokens,
                                             .partition = resolved(config.partition, backend),
                                             .memory = memory_settings(source.model, config, spec, backend),
                                             .activations = config.activations,
                                             .available = available});
  if (world.rank() == 0) {
    observer.note(plan.summary(source.model));
    note_shortage(plan, source.model, available, observer);
    if (plan.leaves_raised) {
      observer.note(fmt::format(
          "--hessian-leaves raised to {}, one a rank at least: the bytes differ from those of a run with fewer ranks",
          plan.partition.leaves));
    }
  }
  const auto wanted = make_fingerprint(source, plan, config, layers, windows, backend);
  require_same_run(world, wanted, config.allow_mixed, observer.note);
  if (config.merge) {
    require_format(wanted, source, merge_options(config));
  }
  const Found found = look_at_disk(world, config, source, plan, wanted, observer);
  QuantizeSummary summary{.out = config.out,
                          .source_bytes = total_bytes(*source.tensors),
                          .blocks_found = std::count(found.valid.begin(), found.valid.end(), 1),
                          .blocks = plan.blocks};
  if (found.complete) {
    summary.already_complete = true;
    return summary;
  }
  const auto blocks_start = Clock::now();
  double flops = 0;
  bool stopped = false;
  std::string rank_seconds;
  {
    StageRun stage(world, backend, config, layers, source, plan, found, observer);
    stage.run(windows);
    const auto computed = world.group().all_gather(world.rank() % plan.grid.replicas == 0 ? stage.blocks_computed() : 0,
                                                   "blocks computed");
    summary.blocks_computed = std::accumulate(computed.begin(), computed.end(), std::int64_t{0});
    flops = stage.flops();
    // A stop that was asked for while the last block was computed comes before the merge, which may take long.
    stopped = world.group().all_max(stage.stopped() || world.stop_requested() ? 1 : 0, "whether to stop") != 0;
    rank_seconds = stage.seconds().dump();
  }
  if (stopped) {
    summary.stopped = cause_of_stop(world);
    return summary;
  }
  const double blocks_seconds = seconds_since(blocks_start);
  const auto peaks = world.group().all_gather(backend.peak_bytes(), "peak memory");
  const auto all_seconds = world.group().all_gather_bytes(std::as_bytes(std::span(rank_seconds)), "seconds of ranks");
  const auto stage_flops = world.group().all_gather(static_cast<std::int64_t>(flops / 1e6), "work done");

  LayerTable table;
  nlohmann::json files = nlohmann::json::array();
  const auto merge_start = Clock::now();
  const io::ShardStore store(config.work);
  if (world.rank() == 0) {
    fault_point("merge");
    discard_snapshots(config.work);  // every block is done
  }
  if (config.merge) {
    const auto artifact =
        merge(world, store, found.fingerprint, source, merge_options(config), config.max_fallbacks, table);
    summary.artifact_bytes = artifact.bytes;
    for (const auto& file : artifact.files) {
      files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.xxh3_128}});
    }
  }
  if (world.rank() == 0) {
    if (!config.merge) {
      const auto step = world.long_host_step("reading the shards");
      read_layers(store, found.fingerprint, plan.blocks, config.max_fallbacks, table);
    }
    summary.loss_ratio = table.loss_ratio();
    summary.seconds = seconds_since(start);
    double mega_flops = 0;
    for (std::size_t rank = 0; rank < stage_flops.size(); rank += static_cast<std::size_t>(plan.grid.replicas)) {
      mega_flops += static_cast<double>(stage_flops[rank]);
    }
    nlohmann::json seconds_of_ranks = nlohmann::json::array();
    for (const auto& text : all_seconds) {
      const auto* const characters = reinterpret_cast<const char*>(text.data());
      seconds_of_ranks.push_back(nlohmann::json::parse(characters, characters + text.size()));
    }
    const nlohmann::json report = {
        {"tool", fmt::format("gptq-dist {}", version)},
        {"model", config.model.string()},
        {"out", config.out.string()},
        {"fingerprint", found.fingerprint},
        {"fingerprint_hash", fingerprint_hash(found.fingerprint)},
        {"ranks", world.size()},
        {"stages", plan.grid.stages},
        {"activations", name_of(plan.activations)},
        {"peak_bytes_per_rank", peaks},
        {"planned_bytes_per_rank", plan.bytes_per_rank(source.model).most.device},
        {"blocks", {{"total", plan.blocks}, {"computed", summary.blocks_computed}, {"found", summary.blocks_found}}},
        {"seconds", {{"total", summary.seconds}, {"blocks", blocks_seconds}, {"merge", seconds_since(merge_start)}}},
        {"model_flops", mega_flops * 1e6},
        {"loss_ratio", summary.loss_ratio ? nlohmann::json(*summary.loss_ratio) : nlohmann::json()},
        {"fallbacks", table.fallbacks()},
        {"artifact", {{"bytes", summary.artifact_bytes}, {"files", std::move(files)}}},
        {"block_seconds", table.block_seconds()},
        {"rank_seconds", std::move(seconds_of_ranks)},
        {"layers", table.layers()}};
    io::write_file_atomically(config.work / "report.json", report.dump(1) + "\n");
    if (config.report) {
      io::write_file_atomically(*config.report, report.dump(1) + "\n");
    }
  }
  world.group().barrier("the end of the merge");
  return summary;
}

}  // namespace gptqd::pipeline
