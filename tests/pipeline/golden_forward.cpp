#include "tests/pipeline/golden_forward.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "pipeline/family.hpp"

namespace gptqd::pipeline::test {

namespace {

std::vector<float> download(Backend& backend, Stream& stream, ConstAnyView<2> view) {
  std::vector<float> host(static_cast<std::size_t>(view.size()));
  const Buffer as_float = backend.allocate(view.size() * size_of(DType::f32));
  backend.convert(stream, {.x = view, .y = as_float.any_view<2>(DType::f32, view.shape)});
  backend.copy_to_host(stream, host.data(), as_float.data(), as_float.bytes());
  stream.synchronize();
  return host;
}

BlockWeights load_block(Backend& backend, Stream& stream, const io::CheckpointReader& tensors, const ModelSpec& model,
                        const BlockSpec& block) {
  const auto image = block_image(tensors, block, {});
  const Buffer raw = backend.allocate(image.bytes);
  fill_buffer(backend, stream, raw, image.pieces, [] {});
  BlockWeights weights(backend, stream, block, image.tensors, raw, model.dtype);
  stream.synchronize();
  return weights;
}

template <class T>
std::vector<T> read_as(const io::SafetensorsFile& file, const io::TensorInfo& info) {
  std::vector<T> values(static_cast<std::size_t>(info.bytes) / sizeof(T));
  file.read(info, std::as_writable_bytes(std::span(values)));
  return values;
}

}  // namespace

Golden read_golden(const std::filesystem::path& folder) {
  const io::SafetensorsFile file(folder / "expected.safetensors");
  Golden golden;
  for (const auto& info : file.tensors()) {
    if (info.name == "input_ids") {
      golden.ids = read_as<std::int32_t>(file, info);
      golden.seqlen = info.shape.at(1);
    } else {
      golden.trace.values[info.name] = read_as<float>(file, info);
    }
  }
  golden.trace.nll = io::read_json(folder / "expected.json").at("nll");
  return golden;
}

Trace run_forward(Backend& backend, Stream& stream, const ModelSpec& model, const io::CheckpointReader& tensors,
                  const std::vector<std::int32_t>& ids, std::int64_t seqlen, const LoadBlock& load) {
  const auto tokens = std::ssize(ids);
  BlockForward forward(backend, stream, model, seqlen, tokens);
  const DType dtype = forward.dtype();
  const auto allocate = [&](std::int64_t width) { return backend.allocate(tokens * width * size_of(dtype)); };
  Trace trace;

  const Buffer device_ids = backend.allocate(tokens * size_of(DType::i32));
  backend.copy_to_device(stream, device_ids.data(), ids.data(), device_ids.bytes());
  const Buffer hidden_buffer = allocate(model.hidden);
  const auto hidden = hidden_buffer.any_view<2>(dtype, {tokens, model.hidden});
  Embedding embedding(backend, stream, model, tensors, seqlen);
  embedding.run(device_ids.view<std::int32_t, 1>({tokens}), hidden);
  trace.values["hidden.0"] = download(backend, stream, hidden);

  for (std::size_t b = 0; b < model.blocks.size(); ++b) {
    const auto& block = model.blocks[b];
    const auto weights = load(static_cast<std::int64_t>(b));
    Buffer previous_buffer;
    AnyView<2> previous;
    for (const Phase phase : phases) {
      Buffer input_buffer = allocate(block.input_width(phase));
      const auto input = input_buffer.any_view<2>(dtype, {tokens, block.input_width(phase)});
      forward.advance(block, weights, phase, hidden, previous, input);
      for (const auto& linear : block.group(phase)) {
        trace.values["linear_input." + linear.module] = download(backend, stream, input);
      }
      previous_buffer = std::move(input_buffer);
      previous = input;
    }
    forward.advance(block, weights, std::nullopt, hidden, previous, {});
    trace.values[fmt::format("hidden.{}", b + 1)] = download(backend, stream, hidden);
  }

  Head head(backend, stream, model, tensors, tokens);
  const Buffer hidden_copy = allocate(model.hidden);
  backend.copy(stream, hidden_copy.data(), hidden.data, hidden.bytes());
  std::vector<std::int32_t> targets(ids.begin() + 1, ids.end());
  targets.push_back(-1);
  for (std::int64_t end = seqlen - 1; end < tokens; end += seqlen) {
    targets[static_cast<std::size_t>(end)] = -1;
  }
  const Buffer device_targets = backend.allocate(tokens * size_of(DType::i32));
  backend.copy_to_device(stream, device_targets.data(), targets.data(), device_targets.bytes());
  const Buffer nll = backend.allocate(tokens * size_of(DType::f64));
  head.cross_entropy(hidden_copy.any_view<2>(dtype, {tokens, model.hidden}),
                     device_targets.view<std::int32_t, 1>({tokens}), nll.view<double, 1>({tokens}));
  std::vector<double> losses(static_cast<std::size_t>(tokens));
  backend.copy_to_host(stream, losses.data(), nll.data(), nll.bytes());

  const Buffer logits = allocate(model.vocabulary);
  const auto logits_view = logits.any_view<2>(dtype, {tokens, model.vocabulary});
  backend.linear(stream, {.x = head.input(hidden), .weight = head.table(), .bias = std::nullopt, .y = logits_view});
  trace.values["logits"] = download(backend, stream, logits_view);
  for (const double loss : losses) {
    trace.nll += loss / static_cast<double>(tokens - tokens / seqlen);
  }
  return trace;
}

Trace run_model(const std::filesystem::path& folder, const std::vector<std::int32_t>& ids, std::int64_t seqlen,
                const std::string& config, int threads) {
  const auto tensors = io::CheckpointReader::open(folder);
  const auto model = describe_model(io::read_json(folder / config), *tensors);
  const auto backend = make_cpu_backend({.threads = threads});
  const auto stream = backend->create_stream();
  return run_forward(*backend, *stream, model, *tensors, ids, seqlen, [&](std::int64_t block) {
    return load_block(*backend, *stream, *tensors, model, model.blocks[static_cast<std::size_t>(block)]);
  });
}

double distance(const std::vector<float>& got, const std::vector<float>& expected) {
  double difference = 0;
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double d = std::abs(static_cast<double>(got.at(i)) - static_cast<double>(expected[i]));
    difference = std::max(difference, std::isnan(d) ? std::numeric_limits<double>::infinity() : d);
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
  }
  return difference / largest;
}

}  // namespace gptqd::pipeline::test
