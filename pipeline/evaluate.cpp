#include "pipeline/evaluate.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "comm/communicator.hpp"
#include "io/gptq_checkpoint.hpp"
#include "io/json_file.hpp"
#include "pipeline/block_forward.hpp"
#include "pipeline/block_loader.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline {

namespace {

/// This rank's windows, cut into micro-batches that are the same at every number of ranks.
struct Batch {
  std::int64_t first_window = 0;
  std::int64_t windows = 0;
  std::int64_t row = 0;  ///< of this rank's tokens
};

std::vector<Batch> own_batches(std::int64_t windows, std::int64_t seqlen, std::int64_t micro_batch_tokens, int rank,
                               int ranks) {
  const std::int64_t size = std::max<std::int64_t>(1, micro_batch_tokens / seqlen);
  const std::int64_t count = (windows + size - 1) / size;
  std::vector<Batch> batches;
  std::int64_t row = 0;
  for (std::int64_t i = count * rank / ranks; i < count * (rank + 1) / ranks; ++i) {
    batches.push_back({.first_window = i * size, .windows = std::min(size, windows - i * size), .row = row});
    row += batches.back().windows * seqlen;
  }
  return batches;
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

}  // namespace

Evaluation evaluate(comm::World& world, Backend& backend, const EvaluateConfig& config) {
  const auto start = std::chrono::steady_clock::now();
  const auto context = fmt::format("reading model {}", config.model.string());
  std::optional<io::GptqArtifact> artifact;
  std::unique_ptr<io::CheckpointReader> folder;
  ModelSpec model;
  with_context(context, [&] {
    if (io::GptqArtifact::is_artifact(config.model)) {
      artifact = io::GptqArtifact::open(config.model);
    } else {
      folder = io::CheckpointReader::open(config.model);
    }
    model = describe_model(io::read_json(config.model / "config.json"), artifact ? artifact->tensors() : *folder);
  });
  const io::CheckpointReader& tensors = artifact ? artifact->tensors() : *folder;
  const auto windows = evaluation_windows(world, model, config.model, config.text);
  if (windows.seqlen < 2) {
    throw Error(ErrorKind::usage,
                fmt::format("windows of {} token(s) predict nothing; give --seqlen 2 or more", windows.seqlen));
  }

  const auto stream = backend.create_stream();
  const auto communicator = comm::make_mpi_communicator(world.group());
  const auto batches =
      own_batches(windows.samples, windows.seqlen, config.micro_batch_tokens, world.rank(), world.size());
  std::int64_t most_rows = 0;
  std::int64_t rows = 0;
  for (const auto& batch : batches) {
    most_rows = std::max(most_rows, batch.windows * windows.seqlen);
    rows += batch.windows * windows.seqlen;
  }
  std::int64_t widest = 0;
  for (const auto& block : model.blocks) {
    widest = std::max({widest, block.input_width(Phase::attention_out), block.input_width(Phase::mlp_out)});
  }
  BlockForward forward(backend, *stream, model, windows.seqlen, most_rows);
  const DType dtype = forward.dtype();
  const auto allocate = [&](std::int64_t tokens, std::int64_t width) {
    return backend.allocate(tokens * width * size_of(dtype));
  };
  const Buffer hidden = allocate(rows, model.hidden);
  const Buffer narrow = allocate(most_rows, model.hidden);
  const Buffer wide = allocate(most_rows, widest);
  const auto hidden_of = [&](const Batch& batch) {
    return hidden.any_view<2>(dtype, {batch.windows * windows.seqlen, model.hidden},
                              batch.row * model.hidden * size_of(dtype));
  };
  const auto upload = [&](std::span<const std::int32_t> values) {
    Buffer buffer = backend.allocate(static_cast<std::int64_t>(values.size_bytes()));
    backend.copy_to_device(*stream, buffer.data(), values.data(), buffer.bytes());
    return buffer;
  };
  const auto ids_of = [&](const Batch& batch) {
    return std::span(windows.ids)
        .subspan(static_cast<std::size_t>(batch.first_window * windows.seqlen),
                 static_cast<std::size_t>(batch.windows * windows.seqlen));
  };

  world.set_activity("embedding the evaluation text");
  {
    Embedding embedding(backend, *stream, model, tensors, windows.seqlen);
    for (const auto& batch : batches) {
      const Buffer ids = upload(ids_of(batch));
      embedding.run(ids.view<std::int32_t, 1>({batch.windows * windows.seqlen}), hidden_of(batch));
    }
    stream->synchronize();
  }

  const PackedSource packed = [&](const std::string& module) -> std::optional<io::PackedLinear> {
    return artifact && artifact->has_linear(module) ? std::optional(artifact->read_linear(module)) : std::nullopt;
  };
  BlockLoader loader(
      {.backend = backend,
       .stream = *stream,
       .communicator = *communicator,
       .group = world.group(),
       .progress = world.progress(),
       .model = model,
       .tensors = tensors},
      [&](std::int64_t) { return packed; }, artifact ? artifact->bits() : 0,
      [&](std::int64_t block) { return static_cast<int>(block % world.size()); });
  for (std::int64_t b = 0; b < std::ssize(model.blocks); ++b) {
    world.set_activity(fmt::format("evaluating block {}", b));
    const auto weights = loader.load(b);
    if (b + 1 < std::ssize(model.blocks)) {
      loader.prefetch(b + 1);
    }
    const auto& block = model.blocks[static_cast<std::size_t>(b)];
    for (const auto& batch : batches) {
      const std::int64_t tokens = batch.windows * windows.seqlen;
      AnyView<2> previous;
      for (const Phase phase : phases) {
        const Buffer& buffer = phase == Phase::attention_out || phase == Phase::mlp_out ? wide : narrow;
        const auto input = buffer.any_view<2>(dtype, {tokens, block.input_width(phase)});
        forward.advance(block, weights, phase, hidden_of(batch), previous, input);
        previous = input;
      }
      forward.advance(block, weights, std::nullopt, hidden_of(batch), previous, {});
    }
    stream->synchronize();  // the weights go out of scope
  }

  world.set_activity("evaluating the head");
  Head head(backend, *stream, model, tensors, std::max<std::int64_t>(most_rows, 1));
  std::vector<double> sums;  // one a window
  for (const auto& batch : batches) {
    const std::int64_t tokens = batch.windows * windows.seqlen;
    const auto targets_host = next_tokens(ids_of(batch), windows.seqlen);
    const Buffer targets = upload(targets_host);
    const Buffer nll = backend.allocate(tokens * size_of(DType::f64));
    head.cross_entropy(hidden_of(batch), targets.view<std::int32_t, 1>({tokens}), nll.view<double, 1>({tokens}));
    std::vector<double> host(static_cast<std::size_t>(tokens));
    backend.copy_to_host(*stream, host.data(), nll.data(), nll.bytes());
    stream->synchronize();
    for (std::int64_t w = 0; w < batch.windows; ++w) {
      double sum = 0;
      for (std::int64_t t = 0; t + 1 < windows.seqlen; ++t) {
        sum += host[static_cast<std::size_t>(w * windows.seqlen + t)];
      }
      sums.push_back(sum);
    }
  }

  Evaluation result{.windows = windows.samples,
                    .seqlen = windows.seqlen,
                    .tokens = windows.samples * (windows.seqlen - 1),
                    .quantized = artifact.has_value()};
  double total = 0;  // added in window order: the same at every number of ranks
  for (const auto& part : world.group().all_gather_bytes(std::as_bytes(std::span(sums)), "losses")) {
    std::vector<double> values(part.size() / sizeof(double));
    std::memcpy(values.data(), part.data(), part.size());
    for (const double value : values) {
      total += value / static_cast<double>(windows.seqlen - 1);
    }
  }
  result.nll = total / static_cast<double>(windows.samples);
  result.perplexity = std::exp(result.nll);
  for (const auto& file : tensors.files()) {
    result.weight_bytes += file.bytes;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace gptqd::pipeline
