/// @file The forward pass against what transformers computes (tests/golden/models).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "io/json_file.hpp"
#include "pipeline/family.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/pipeline/golden_forward.hpp"
#include "tests/support/host_model.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::HostModel;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::distance;
using test::error_of;
using test::Golden;
using test::golden_tolerance;
using test::read_golden;
using test::run_model;
using test::Trace;

void expect_golden(const Trace& got, const Golden& golden) {
  ASSERT_EQ(got.values.size(), golden.trace.values.size());
  for (const auto& [name, expected] : golden.trace.values) {
    ASSERT_TRUE(got.values.contains(name)) << name;
    ASSERT_EQ(got.values.at(name).size(), expected.size()) << name;
    EXPECT_LE(distance(got.values.at(name), expected), golden_tolerance) << name;
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

class ForwardOfOlderFiles : public ::testing::TestWithParam<std::string> {};

TEST_P(ForwardOfOlderFiles, GivesTheSameLogits) {
  const auto folder = source_path("tests/golden/models/" + GetParam());
  const auto golden = read_golden(folder);

  const auto got = run_model(folder, golden.ids, golden.seqlen);

  EXPECT_LE(distance(got.values.at("logits"), golden.trace.values.at("logits")), golden_tolerance);
}

// Names without "transformer.", and the pickles of older files with names without "model.".
INSTANTIATE_TEST_SUITE_P(All, ForwardOfOlderFiles, ::testing::Values("bloom-bare", "bloom-bin-sharded", "opt-bin"),
                         test_name);

TEST(ForwardOfFilesWithoutModel, NamesGiveTheSame) {
  const auto folder = source_path("tests/golden/models/opt-post");
  const TemporaryFolder copy;
  auto model = HostModel::read(folder);
  for (auto& tensor : model.tensors) {
    tensor.name = tensor.name.substr(std::string("model.").size());
  }
  model.write(copy.path());
  const auto golden = read_golden(folder);

  const auto got = run_model(copy.path(), golden.ids, golden.seqlen);

  EXPECT_LE(distance(got.values.at("logits"), golden.trace.values.at("logits")), golden_tolerance);
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
