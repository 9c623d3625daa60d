/// @file The forward pass against what transformers computes (tests/golden/models).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "io/json_file.hpp"
#include "io/safetensors.hpp"
#include "pipeline/block_forward.hpp"
#include "pipeline/family.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/host_model.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::HostModel;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;

constexpr double tolerance = 2e-4;  // of the largest expected value, tensor by tensor

/// All values of a forward pass, under the names that the golden files use.
struct Trace {
  std::map<std::string, std::vector<float>> values;
  double nll = 0;
};

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
  const auto host = read_host_block(tensors, block, {}, [] {});
  const Buffer raw = backend.allocate(std::ssize(host.data));
  backend.copy_to_device(stream, raw.data(), host.data.data(), raw.bytes());
  BlockWeights weights(backend, stream, block, host.tensors, raw, model.dtype, 0);
  stream.synchronize();
  return weights;
}

Trace run_model(const std::filesystem::path& folder, const std::vector<std::int32_t>& ids, std::int64_t seqlen,
                const std::string& config = "config.json", int threads = 2) {
  const auto tensors = io::CheckpointReader::open(folder);
  const auto model = describe_model(io::read_json(folder / config), *tensors);
  const auto backend = make_cpu_backend({.threads = threads});
  const auto stream = backend->create_stream();
  const auto tokens = std::ssize(ids);
  BlockForward forward(*backend, *stream, model, seqlen, tokens);
  const DType dtype = forward.dtype();
  const auto allocate = [&](std::int64_t width) { return backend->allocate(tokens * width * size_of(dtype)); };
  Trace trace;

  const Buffer device_ids = backend->allocate(tokens * size_of(DType::i32));
  backend->copy_to_device(*stream, device_ids.data(), ids.data(), device_ids.bytes());
  const Buffer hidden_buffer = allocate(model.hidden);
  const auto hidden = hidden_buffer.any_view<2>(dtype, {tokens, model.hidden});
  Embedding embedding(*backend, *stream, model, *tensors, seqlen);
  embedding.run(device_ids.view<std::int32_t, 1>({tokens}), hidden);
  trace.values["hidden.0"] = download(*backend, *stream, hidden);

  for (std::size_t b = 0; b < model.blocks.size(); ++b) {
    const auto& block = model.blocks[b];
    const auto weights = load_block(*backend, *stream, *tensors, model, block);
    Buffer previous_buffer;
    AnyView<2> previous;
    for (const Phase phase : phases) {
      Buffer input_buffer = allocate(block.input_width(phase));
      const auto input = input_buffer.any_view<2>(dtype, {tokens, block.input_width(phase)});
      forward.advance(block, weights, phase, hidden, previous, input);
      for (const auto& linear : block.group(phase)) {
        trace.values["linear_input." + linear.module] = download(*backend, *stream, input);
      }
      previous_buffer = std::move(input_buffer);
      previous = input;
    }
    forward.advance(block, weights, std::nullopt, hidden, previous, {});
    trace.values[fmt::format("hidden.{}", b + 1)] = download(*backend, *stream, hidden);
  }

  Head head(*backend, *stream, model, *tensors, tokens);
  const Buffer hidden_copy = allocate(model.hidden);
  backend->copy(*stream, hidden_copy.data(), hidden.data, hidden.bytes());
  std::vector<std::int32_t> targets(ids.begin() + 1, ids.end());
  targets.push_back(-1);
  for (std::int64_t end = seqlen - 1; end < tokens; end += seqlen) {
    targets[static_cast<std::size_t>(end)] = -1;
  }
  const Buffer device_targets = backend->allocate(tokens * size_of(DType::i32));
  backend->copy_to_device(*stream, device_targets.data(), targets.data(), device_targets.bytes());
  const Buffer nll = backend->allocate(tokens * size_of(DType::f64));
  head.cross_entropy(hidden_copy.any_view<2>(dtype, {tokens, model.hidden}),
                     device_targets.view<std::int32_t, 1>({tokens}), nll.view<double, 1>({tokens}));
  std::vector<double> losses(static_cast<std::size_t>(tokens));
  backend->copy_to_host(*stream, losses.data(), nll.data(), nll.bytes());

  const Buffer logits = allocate(model.vocabulary);
  const auto logits_view = logits.any_view<2>(dtype, {tokens, model.vocabulary});
  backend->linear(*stream, {.x = head.input(hidden), .weight = head.table(), .bias = std::nullopt, .y = logits_view});
  trace.values["logits"] = download(*backend, *stream, logits_view);
  for (const double loss : losses) {
    trace.nll += loss / static_cast<double>(tokens - tokens / seqlen);
  }
  return trace;
}

/// expected.safetensors and expected.json of a golden model.
struct Golden {
  std::vector<std::int32_t> ids;
  std::int64_t seqlen = 0;
  Trace trace;
};

template <class T>
std::vector<T> read_as(const io::SafetensorsFile& file, const io::TensorInfo& info) {
  std::vector<T> values(static_cast<std::size_t>(info.bytes) / sizeof(T));
  file.read(info, std::as_writable_bytes(std::span(values)));
  return values;
}

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

/// Largest |got - expected| as a share of the largest |expected|.
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

void expect_golden(const Trace& got, const Golden& golden) {
  ASSERT_EQ(got.values.size(), golden.trace.values.size());
  for (const auto& [name, expected] : golden.trace.values) {
    ASSERT_TRUE(got.values.contains(name)) << name;
    ASSERT_EQ(got.values.at(name).size(), expected.size()) << name;
    EXPECT_LE(distance(got.values.at(name), expected), tolerance) << name;
  }
  EXPECT_NEAR(got.nll, golden.trace.nll, 2e-4);
}

class Forward : public ::testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder() const { return source_path("tests/golden/models/" + GetParam()); }
};

TEST_P(Forward, EveryValueIsTransformers) {
  const auto golden = read_golden(folder());

  expect_golden(run_model(folder(), golden.ids, golden.seqlen), golden);
}

TEST_P(Forward, ClassicConfigurationGivesTheSame) {
  const auto golden = read_golden(folder());

  expect_golden(run_model(folder(), golden.ids, golden.seqlen, "config.classic.json"), golden);
}

/// What does not depend on a model's details, on one of each architecture.
class ForwardOfFiles : public Forward {};

TEST_P(ForwardOfFiles, ShardedFilesGiveTheSame) {
  const TemporaryFolder copy;
  HostModel::read(folder()).write_sharded(copy.path(), 3);
  const auto golden = read_golden(folder());

  expect_golden(run_model(copy.path(), golden.ids, golden.seqlen), golden);
}

TEST_P(ForwardOfFiles, TheSameWeightsInFloatGiveTheSame) {
  const TemporaryFolder copy;
  auto model = HostModel::read(folder());
  for (auto& tensor : model.tensors) {
    tensor = to_dtype(tensor, DType::f32);
  }
  model.write(copy.path());
  const auto golden = read_golden(folder());

  expect_golden(run_model(copy.path(), golden.ids, golden.seqlen), golden);
}

TEST_P(ForwardOfFiles, Bfloat16FilesGiveWhatTheirValuesInFloatGive) {
  const TemporaryFolder half;
  const TemporaryFolder full;
  auto model = HostModel::read(folder());
  for (auto& tensor : model.tensors) {
    tensor = to_dtype(tensor, DType::bf16);
  }
  model.write(half.path());
  for (auto& tensor : model.tensors) {
    tensor = to_dtype(tensor, DType::f32);
  }
  model.write(full.path());
  const auto golden = read_golden(folder());

  const auto expected = run_model(full.path(), golden.ids, golden.seqlen);
  const auto got = run_model(half.path(), golden.ids, golden.seqlen);

  for (const auto& [name, values] : expected.values) {
    EXPECT_LE(distance(got.values.at(name), values), 1e-6) << name;
  }
  EXPECT_NEAR(expected.nll, golden.trace.nll, 0.1);  // it is the same model, rounded
}

TEST_P(ForwardOfFiles, BitsDoNotDependOnTheNumberOfThreads) {
  const auto golden = read_golden(folder());

  const auto one = run_model(folder(), golden.ids, golden.seqlen, "config.json", 1);
  const auto three = run_model(folder(), golden.ids, golden.seqlen, "config.json", 3);

  EXPECT_EQ(one.values, three.values);
  EXPECT_EQ(one.nll, three.nll);
}

const std::vector<std::string> golden_models{"bloom-odd",
                                             "bloom-postln",
                                             "bloom-pow2",
                                             "llama-bias",
                                             "llama-gqa-rope3",
                                             "llama-mha",
                                             "llama-rope-dynamic",
                                             "llama-rope-linear",
                                             "llama-rope-yarn-mscale",
                                             "llama-sharded",
                                             "mistral-window",
                                             "opt-post",
                                             "opt-pre",
                                             "phi3-fused",
                                             "phi3-longrope-long",
                                             "phi3-longrope-short",
                                             "phi3-partial",
                                             "qwen2-bias",
                                             "qwen2-mixed-window",
                                             "qwen2-rope-yarn",
                                             "qwen3-norm"};
std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, Forward, ::testing::ValuesIn(golden_models), test_name);
INSTANTIATE_TEST_SUITE_P(OfEachArchitecture, ForwardOfFiles,
                         ::testing::Values("bloom-odd", "llama-bias", "opt-post", "opt-pre", "phi3-fused",
                                           "qwen3-norm"),
                         test_name);

TEST(ForwardOfOlderFiles, NamesWithoutTransformerGiveTheSame) {
  const auto folder = source_path("tests/golden/models/bloom-bare");
  const auto golden = read_golden(folder);

  const auto got = run_model(folder, golden.ids, golden.seqlen);

  EXPECT_LE(distance(got.values.at("logits"), golden.trace.values.at("logits")), tolerance);
}

TEST(ForwardOfOlderFiles, NamesWithoutModelGiveTheSame) {
  const auto folder = source_path("tests/golden/models/opt-post");
  const TemporaryFolder copy;
  auto model = HostModel::read(folder);
  for (auto& tensor : model.tensors) {
    tensor.name = tensor.name.substr(std::string("model.").size());
  }
  model.write(copy.path());
  const auto golden = read_golden(folder);

  const auto got = run_model(copy.path(), golden.ids, golden.seqlen);

  EXPECT_LE(distance(got.values.at("logits"), golden.trace.values.at("logits")), tolerance);
}

TEST(Embedding, WindowsLongerThanTheModelsPositionsAreRefused) {
  const auto folder = source_path("tests/golden/models/opt-pre");
  const auto tensors = io::CheckpointReader::open(folder);
  const auto model = describe_model(io::read_json(folder / "config.json"), *tensors);
  const auto backend = make_cpu_backend({.threads = 1});
  const auto stream = backend->create_stream();

  EXPECT_NO_THROW(Embedding(*backend, *stream, model, *tensors, 64));
  const Error error = error_of([&] { Embedding(*backend, *stream, model, *tensors, 65); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), ::testing::AllOf(::testing::HasSubstr("65"), ::testing::HasSubstr("64 positions")));
}

}  // namespace
}  // namespace gptqd::pipeline
