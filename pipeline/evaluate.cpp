#include "pipeline/evaluate.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "comm/communicator.hpp"
#include "io/artifact/artifact_reader.hpp"
#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "pipeline/block_forward.hpp"
#include "pipeline/block_loader.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A float folder or an artifact, open.
struct OpenModel {
  std::filesystem::path path;
  std::unique_ptr<io::ArtifactReader> artifact;
  double bits = 0;  ///< of the artifact's weights, on average
  std::unique_ptr<io::CheckpointReader> folder;
  ModelSpec spec;

  const io::CheckpointReader& tensors() const { return artifact ? artifact->tensors() : *folder; }
};

double average_bits(const io::ArtifactReader& artifact) {
  double weights = 0;
  double bits = 0;
  for (const auto& name : artifact.linear_names()) {
    const auto layer = artifact.layer(name);
    const auto size = static_cast<double>(layer.rows) * static_cast<double>(layer.cols);
    weights += size;
    bits += size * layer.settings.bits;
  }
  return weights > 0 ? bits / weights : 0.0;
}

OpenModel open_model(const std::filesystem::path& path) {
  return with_context(fmt::format("reading model {}", path.string()), [&] {
    OpenModel model{.path = path, .artifact = {}, .folder = {}, .spec = {}};
    if (io::ArtifactReader::is_artifact(path)) {
      model.artifact = io::ArtifactReader::open(path);
      model.bits = average_bits(*model.artifact);
    } else {
      model.folder = io::CheckpointReader::open(path);
    }
    model.spec = describe_model(io::read_json(path / "config.json"), model.tensors());
    return model;
  });
}

/// Windows of one text that are computed together.
struct Batch {
  std::size_t text = 0;
  std::int64_t first_window = 0;
  std::int64_t windows = 0;
  std::int64_t row = 0;  ///< of this rank's hidden states
};

/// All windows cut into micro-batches, the same at every number of ranks and whatever texts are evaluated together.
std::vector<Batch> cut(const std::vector<io::TokenWindows>& texts, std::int64_t seqlen,
                       std::int64_t micro_batch_tokens) {
  const std::int64_t size = std::max<std::int64_t>(1, micro_batch_tokens / seqlen);
  std::vector<Batch> batches;
  for (std::size_t text = 0; text < texts.size(); ++text) {
    for (std::int64_t first = 0; first < texts[text].samples; first += size) {
      batches.push_back({.text = text, .first_window = first, .windows = std::min(size, texts[text].samples - first)});
    }
  }
  return batches;
}

/// A rank's share of the batches, in runs whose hidden states are in memory together.
std::vector<std::vector<Batch>> own_passes(const std::vector<Batch>& batches, std::int64_t seqlen,
                                           std::int64_t most_tokens, int rank, int ranks) {
  const auto count = std::ssize(batches);
  std::vector<std::vector<Batch>> passes(1);
  std::int64_t rows = 0;
  for (auto i = count * rank / ranks; i < count * (rank + 1) / ranks; ++i) {
    Batch batch = batches[static_cast<std::size_t>(i)];
    const std::int64_t tokens = batch.windows * seqlen;
    if (!passes.back().empty() && rows + tokens > most_tokens) {
      passes.emplace_back();
      rows = 0;
    }
    batch.row = rows;
    rows += tokens;
    passes.back().push_back(batch);
  }
  return passes;
}

/// Next tokens; −1 at the end of each window.
std::vector<std::int32_t> next_tokens(std::span<const std::int32_t> ids, std::int64_t seqlen) {
  std::vector<std::int32_t> targets(ids.size(), -1);
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    if ((static_cast<std::int64_t>(i) + 1) % seqlen != 0) {
      targets[i] = ids[i + 1];
    }
  }
  return targets;
}

/// The forward pass of one model over this rank's windows.
class Evaluator {
 public:
  Evaluator(comm::World& world, Backend& backend, const OpenModel& model, const std::vector<io::TokenWindows>& texts,
            const EvaluateConfig& config, const std::function<void(const std::string&)>& note)
      : world_(world),
        backend_(backend),
        model_(model),
        texts_(texts),
        seqlen_(texts.front().seqlen),
        note_(note),
        keeps_logits_(!config.logits.empty()),
        stream_(backend.create_stream()),
        communicator_(comm::make_communicator(world.group(), backend)) {
    const auto most_tokens =
        config.max_hidden_bytes / (model.spec.hidden * size_of(backend.compute_dtype(model.spec.dtype)));
    passes_ =
        own_passes(cut(texts, seqlen_, config.micro_batch_tokens), seqlen_, most_tokens, world.rank(), world.size());
    // Loading blocks is collective: all ranks make as many passes.
    passes_.resize(static_cast<std::size_t>(world.group().all_max(std::ssize(passes_), "passes over the blocks")));
    for (const auto& pass : passes_) {
      std::int64_t rows = 0;
      for (const auto& batch : pass) {
        most_rows_ = std::max(most_rows_, batch.windows * seqlen_);
        rows += batch.windows * seqlen_;
      }
      most_hidden_rows_ = std::max(most_hidden_rows_, rows);
    }
  }

  /// The mean loss of each window's predictions, by text. Collective, the same on every rank.
  std::vector<std::vector<double>> run() {
    std::vector<double> own;
    for (std::size_t pass = 0; pass < passes_.size(); ++pass) {
      const auto losses = run_pass(pass);
      own.insert(own.end(), losses.begin(), losses.end());
    }
    const auto gathered = gather(std::as_bytes(std::span(own)), "losses");
    std::vector<double> all(gathered.size() / sizeof(double));
    std::memcpy(all.data(), gathered.data(), gathered.size());
    std::vector<std::vector<double>> by_text;
    auto next = all.begin();
    for (const auto& text : texts_) {
      by_text.emplace_back(next, next + text.samples);
      next += text.samples;
    }
    return by_text;
  }

  /// After run(), writes the logits of all windows. Collective; rank 0 writes.
  void write_logits(const std::filesystem::path& path) {
    const auto all = gather(logits_, "logits");
    if (world_.rank() != 0) {
      return;
    }
    const auto& windows = texts_.front();
    io::SafetensorsWriter writer(path, {{.name = "input_ids", .dtype = DType::i32, .shape = {windows.samples, seqlen_}},
                                        {.name = "logits",
                                         .dtype = backend_.compute_dtype(model_.spec.dtype),
                                         .shape = {windows.samples, seqlen_, model_.spec.vocabulary}}});
    writer.append("input_ids", std::as_bytes(std::span(windows.ids)));
    writer.append("logits", all);
    writer.commit();
  }

 private:
  /// Every rank's bytes, in the ranks' order, which is the windows'.
  std::vector<std::byte> gather(std::span<const std::byte> own, const char* what) {
    std::vector<std::byte> all;
    for (const auto& part : world_.group().all_gather_bytes(own, what)) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  std::span<const std::int32_t> ids_of(const Batch& batch) const {
    return std::span(texts_[batch.text].ids)
        .subspan(static_cast<std::size_t>(batch.first_window * seqlen_),
                 static_cast<std::size_t>(batch.windows * seqlen_));
  }

  Buffer upload(std::span<const std::int32_t> values) {
    Buffer buffer = backend_.allocate(static_cast<std::int64_t>(values.size_bytes()));
    backend_.copy_to_device(*stream_, buffer.data(), values.data(), buffer.bytes());
    return buffer;
  }

  std::vector<double> run_pass(std::size_t pass) {
    const auto& model = model_.spec;
    const auto& batches = passes_[pass];
    std::int64_t widest = 0;
    for (const auto& block : model.blocks) {
      widest = std::max({widest, block.input_width(Phase::attention_out), block.input_width(Phase::mlp_out)});
    }
    BlockForward forward(backend_, *stream_, model, seqlen_, most_rows_);
    const DType dtype = forward.dtype();
    const auto allocate = [&](std::int64_t tokens, std::int64_t width) {
      return backend_.allocate(tokens * width * size_of(dtype));
    };
    const Buffer hidden = allocate(most_hidden_rows_, model.hidden);
    const Buffer narrow = allocate(most_rows_, model.hidden);
    const Buffer wide = allocate(most_rows_, widest);
    const auto hidden_of = [&](const Batch& batch) {
      return hidden.any_view<2>(dtype, {batch.windows * seqlen_, model.hidden},
                                batch.row * model.hidden * size_of(dtype));
    };

    world_.set_activity("embedding the evaluation text");
    {
      Embedding embedding(backend_, *stream_, model, model_.tensors(), seqlen_);
      for (const auto& batch : batches) {
        const Buffer ids = upload(ids_of(batch));
        embedding.run(ids.view<std::int32_t, 1>({batch.windows * seqlen_}), hidden_of(batch));
      }
      stream_->synchronize();
    }

    const auto& artifact = model_.artifact;
    const PackedSource packed = [&](const std::string& module) -> std::optional<io::PackedLinear> {
      return artifact && artifact->has_linear(module) ? std::optional(artifact->read_linear(module)) : std::nullopt;
    };
    BlockLoader loader(
        {.backend = backend_,
         .stream = *stream_,
         .communicator = *communicator_,
         .group = world_.group(),
         .progress = world_.progress(),
         .model = model,
         .tensors = model_.tensors()},
        [&](std::int64_t) { return packed; },
        [&](std::int64_t block) { return static_cast<int>(block % world_.size()); });
    for (std::int64_t b = 0; b < std::ssize(model.blocks); ++b) {
      world_.set_activity(fmt::format("evaluating block {}", b));
      const auto weights = loader.load(b);
      if (b + 1 < std::ssize(model.blocks)) {
        loader.prefetch(b + 1);
      }
      const auto& block = model.blocks[static_cast<std::size_t>(b)];
      for (const auto& batch : batches) {
        const std::int64_t tokens = batch.windows * seqlen_;
        AnyView<2> previous;
        for (const Phase phase : phases) {
          const Buffer& buffer = phase == Phase::attention_out || phase == Phase::mlp_out ? wide : narrow;
          const auto input = buffer.any_view<2>(dtype, {tokens, block.input_width(phase)});
          forward.advance(block, weights, phase, hidden_of(batch), previous, input);
          previous = input;
        }
        forward.advance(block, weights, std::nullopt, hidden_of(batch), previous, {});
      }
      stream_->synchronize();  // the weights go out of scope
      report(pass, b + 1);
    }

    world_.set_activity("evaluating the head");
    Head head(backend_, *stream_, model, model_.tensors(), std::max<std::int64_t>(most_rows_, 1));
    std::vector<double> losses;
    for (const auto& batch : batches) {
      const std::int64_t tokens = batch.windows * seqlen_;
      const auto targets_host = next_tokens(ids_of(batch), seqlen_);
      const Buffer targets = upload(targets_host);
      const Buffer nll = backend_.allocate(tokens * size_of(DType::f64));
      const auto x =
          head.cross_entropy(hidden_of(batch), targets.view<std::int32_t, 1>({tokens}), nll.view<double, 1>({tokens}));
      if (keeps_logits_) {
        append_logits(x, head.table());
      }
      std::vector<double> host(static_cast<std::size_t>(tokens));
      backend_.copy_to_host(*stream_, host.data(), nll.data(), nll.bytes());
      stream_->synchronize();
      for (std::int64_t w = 0; w < batch.windows; ++w) {
        double sum = 0;
        for (std::int64_t t = 0; t + 1 < seqlen_; ++t) {
          sum += host[static_cast<std::size_t>(w * seqlen_ + t)];
        }
        losses.push_back(sum / static_cast<double>(seqlen_ - 1));
      }
    }
    return losses;
  }

  /// Adds x·headᵀ to the logits on the host.
  void append_logits(ConstAnyView<2> x, ConstAnyView<2> table) {
    const Buffer logits = backend_.allocate(x.rows() * table.rows() * size_of(x.dtype));
    backend_.linear(
        *stream_,
        {.x = x, .weight = table, .bias = std::nullopt, .y = logits.any_view<2>(x.dtype, {x.rows(), table.rows()})});
    const auto before = logits_.size();
    logits_.resize(before + static_cast<std::size_t>(logits.bytes()));
    backend_.copy_to_host(*stream_, logits_.data() + before, logits.data(), logits.bytes());
    stream_->synchronize();
  }

  /// A line now and then.
  void report(std::size_t pass, std::int64_t blocks_done) {
    constexpr double seconds_between_lines = 10;
    if (world_.rank() != 0 || seconds_since(last_line_) < seconds_between_lines) {
      return;
    }
    last_line_ = Clock::now();
    const auto blocks = std::ssize(model_.spec.blocks);
    const auto done = static_cast<double>(static_cast<std::int64_t>(pass) * blocks + blocks_done) /
                      static_cast<double>(std::ssize(passes_) * blocks);
    note_(fmt::format("{}: block {} of {}{}, about {:.0f} s left", model_.path.string(), blocks_done, blocks,
                      passes_.size() > 1 ? fmt::format(" in pass {} of {}", pass + 1, passes_.size()) : "",
                      seconds_since(start_) * (1 - done) / done));
  }

  comm::World& world_;
  Backend& backend_;
  const OpenModel& model_;
  const std::vector<io::TokenWindows>& texts_;
  std::int64_t seqlen_;
  const std::function<void(const std::string&)>& note_;
  bool keeps_logits_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<comm::Communicator> communicator_;
  std::vector<std::vector<Batch>> passes_;
  std::vector<std::byte> logits_;      ///< [own tokens, vocabulary], when they are kept
  std::int64_t most_rows_ = 0;         ///< of a batch
  std::int64_t most_hidden_rows_ = 0;  ///< of a pass
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_line_ = start_;
};

/// The first model's windows, after making sure that they are every model's.
std::vector<io::TokenWindows> common_windows(comm::World& world, const std::vector<OpenModel>& models,
                                             EvaluationRequest request) {
  const auto windows = evaluation_windows(world, models.front().spec, models.front().path, request);
  request.seqlen = windows.front().seqlen;
  if (*request.seqlen < 2) {
    throw Error(ErrorKind::usage,
                fmt::format("windows of {} token(s) predict nothing; give --seqlen 2 or more", *request.seqlen));
  }
  for (std::size_t i = 1; i < models.size(); ++i) {
    const auto others = evaluation_windows(world, models[i].spec, models[i].path, request);
    for (std::size_t text = 0; text < windows.size(); ++text) {
      if (others[text] != windows[text]) {
        throw Error(ErrorKind::input,
                    fmt::format("{} and {} have different tokenizers: {} becomes other tokens, so that their losses "
                                "cannot be compared; evaluate each alone",
                                models.front().path.string(), models[i].path.string(), request.sources[text].name()));
      }
    }
  }
  return windows;
}

/// @throws Error (usage) when the logits are too many to be of use
void require_small_logits(const ModelSpec& model, const io::TokenWindows& windows) {
  constexpr double most_bytes = 1e9;
  const double bytes = static_cast<double>(windows.samples) * static_cast<double>(windows.seqlen) *
                       static_cast<double>(model.vocabulary) * sizeof(float);
  if (bytes > most_bytes) {
    throw Error(ErrorKind::usage,
                fmt::format("the logits of {} windows of {} tokens with a vocabulary of {} are {:.1f} GB, more than "
                            "the {:.0f} GB that are written; give --windows or --seqlen",
                            windows.samples, windows.seqlen, model.vocabulary, bytes / 1e9, most_bytes / 1e9));
  }
}

ModelEvaluation summarize(const OpenModel& model, const EvaluationRequest& request,
                          const std::vector<io::TokenWindows>& windows, std::vector<std::vector<double>> losses) {
  ModelEvaluation result{.model = model.path,
                         .quantized = model.artifact != nullptr,
                         .bits = model.artifact ? model.bits : static_cast<double>(8 * size_of(model.spec.dtype)),
                         .weight_bytes = 0,
                         .seconds = 0,
                         .texts = {}};
  for (const auto& file : model.tensors().files()) {
    result.weight_bytes += file.bytes;
  }
  for (std::size_t i = 0; i < windows.size(); ++i) {
    double nll = 0;  // added in window order: the same at every number of ranks
    for (const double loss : losses[i]) {
      nll += loss;
    }
    nll /= static_cast<double>(windows[i].samples);
    result.texts.push_back({.source = request.sources[i],
                            .perplexity = std::exp(nll),
                            .nll = nll,
                            .windows = windows[i].samples,
                            .seqlen = windows[i].seqlen,
                            .tokens = windows[i].samples * (windows[i].seqlen - 1),
                            .hash = windows[i].hash(),
                            .window_nll = std::move(losses[i])});
  }
  return result;
}

}  // namespace

std::vector<ModelEvaluation> evaluate(comm::World& world, Backend& backend, const EvaluateConfig& config,
                                      const std::function<void(const std::string& line)>& note) {
  require(!config.models.empty(), "no model to evaluate");
  const bool writes_logits = !config.logits.empty();
  if (writes_logits && (config.models.size() > 1 || config.request.sources.size() > 1)) {
    throw Error(ErrorKind::usage, "--logits takes one model and one text; evaluate the others by themselves");
  }
  std::vector<OpenModel> models;
  for (const auto& path : config.models) {
    models.push_back(open_model(path));
  }
  const auto windows = common_windows(world, models, config.request);
  if (writes_logits) {
    require_small_logits(models.front().spec, windows.front());
  }
  std::vector<ModelEvaluation> results;
  for (const auto& model : models) {
    const auto start = Clock::now();
    auto losses = with_context(fmt::format("evaluating {}", model.path.string()), [&] {
      Evaluator evaluator(world, backend, model, windows, config, note);
      auto by_text = evaluator.run();
      if (writes_logits) {
        evaluator.write_logits(config.logits);
      }
      return by_text;
    });
    results.push_back(summarize(model, config.request, windows, std::move(losses)));
    results.back().seconds = seconds_since(start);
    if (results.size() > 1) {
      for (std::size_t i = 0; i < windows.size(); ++i) {
        results.back().texts[i].difference =
            paired_difference(results.front().texts[i].window_nll, results.back().texts[i].window_nll);
      }
    }
  }
  return results;
}

}  // namespace gptqd::pipeline
