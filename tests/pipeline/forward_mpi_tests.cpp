/// @file The forward pass of each family with the samples split over ranks, which get their blocks from the owners.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/json_file.hpp"
#include "pipeline/block_loader.hpp"
#include "pipeline/family.hpp"
#include "tests/comm/mpi_main.hpp"
#include "tests/pipeline/golden_forward.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::source_path;

class ForwardOnRanks : public ::testing::TestWithParam<std::string> {};

TEST_P(ForwardOnRanks, EveryValueIsTransformers) {
  auto& world = comm::test::world();
  const auto folder = source_path("tests/golden/models/" + GetParam());
  const auto golden = test::read_golden(folder);
  const auto tensors = io::CheckpointReader::open(folder);
  const auto model = describe_model(io::read_json(folder / "config.json"), *tensors);
  const auto backend = make_cpu_backend({.threads = 1});
  const auto stream = backend->create_stream();
  const auto communicator = comm::make_mpi_communicator(world.group());
  BlockLoader loader({.backend = *backend,
                      .stream = *stream,
                      .communicator = *communicator,
                      .group = world.group(),
                      .progress = world.progress(),
                      .model = model,
                      .tensors = *tensors},
                     {}, [&](std::int64_t block) { return static_cast<int>(block % world.size()); });
  const auto part = [&](const auto& all) {
    const auto size = std::ssize(all) / world.size();
    return std::vector(all.begin() + size * world.rank(), all.begin() + size * (world.rank() + 1));
  };
  ASSERT_EQ(golden.samples() % world.size(), 0);

  const auto got = test::run_forward(*backend, *stream, model, *tensors, part(golden.ids), golden.seqlen,
                                     [&](std::int64_t block) { return loader.load(block); });

  ASSERT_EQ(got.values.size(), golden.trace.values.size());
  for (const auto& [name, expected] : golden.trace.values) {
    ASSERT_TRUE(got.values.contains(name)) << name;
    const auto own = part(expected);
    ASSERT_EQ(got.values.at(name).size(), own.size()) << name;
    EXPECT_LE(test::distance(got.values.at(name), own), test::golden_tolerance) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ForwardOnRanks,
                         ::testing::Values("bloom-odd", "bloom-postln", "bloom-pow2", "llama-bias", "llama-gqa-rope3",
                                           "llama-mha", "llama-sharded", "mistral-window", "opt-post", "opt-pre",
                                           "phi3-fused", "qwen2-bias", "qwen3-norm"));

}  // namespace
}  // namespace gptqd::pipeline
