#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/json_file.hpp"
#include "pipeline/family.hpp"
#include "pipeline/verify/tensor_parallel.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using Verdict = KernelAnswer::Verdict;
using ::testing::HasSubstr;

/// One that every kernel takes, changed.
EngineTensor tensor(const std::function<void(EngineTensor&)>& change = [](EngineTensor&) {}) {
  EngineTensor tensor{.format = io::ArtifactFormat::gptq,
                      .dtype = DType::f16,
                      .rows = 4096,
                      .cols = 4096,
                      .full_cols = 4096,
                      .settings = {.bits = 4, .group_size = 128}};
  change(tensor);
  return tensor;
}

struct EngineRow {
  std::string name;
  EngineTensor tensor;
  std::vector<EngineKernel> refused;
  std::vector<EngineKernel> padded = {};
};

TEST(EngineKernels, TakeWhatTheirSourcesSay) {
  using enum EngineKernel;
  const std::vector<EngineRow> rows{
      {"plain", tensor(), {}},
      {"8 bits", tensor([](auto& t) { t.settings.bits = 8; }), {exllama_v2}},
      {"3 bits", tensor([](auto& t) { t.settings.bits = 3; }), {marlin, machete, exllama, exllama_v2, triton}},
      {"2 bits", tensor([](auto& t) { t.settings.bits = 2; }), {marlin, machete, exllama, exllama_v2}},
      {"asymmetric v2",
       tensor([](auto& t) {
         t.format = io::ArtifactFormat::gptq_v2;
         t.settings.sym = false;
       }),
       {marlin, machete, exllama}},
      {"asymmetric compressed-tensors",
       tensor([](auto& t) {
         t.format = io::ArtifactFormat::compressed_tensors;
         t.settings.sym = false;
       }),
       {exllama, exllama_v2, triton, torch}},
      {"asymmetric compressed-tensors, 8 bits",
       tensor([](auto& t) {
         t.format = io::ArtifactFormat::compressed_tensors;
         t.settings.bits = 8;
         t.settings.sym = false;
       }),
       {marlin, exllama, exllama_v2, triton, torch}},
      {"bf16", tensor([](auto& t) { t.dtype = DType::bf16; }), {exllama}},
      {"groups of 32", tensor([](auto& t) { t.settings.group_size = 32; }), {machete}},
      {"groups of 64", tensor([](auto& t) { t.settings.group_size = 64; }), {}},
      {"groups of 16", tensor([](auto& t) { t.settings.group_size = 16; }), {marlin, machete, exllama_v2}},
      {"groups of 8", tensor([](auto& t) { t.settings.group_size = 8; }), {marlin, machete, exllama_v2, triton, torch}},
      {"rows as groups", tensor([](auto& t) { t.settings.group_size = -1; }), {exllama}},
      {"cut groups",
       tensor([](auto& t) { t.cols = 4096 / 64; }),
       {marlin, machete, exllama, exllama_v2, triton, torch}},
      {"rows as groups, cut",
       tensor([](auto& t) {
         t.settings.group_size = -1;
         t.cols = 1024;
       }),
       {exllama}},
      {"dynamic order", tensor([](auto& t) { t.settings.reordered = true; }), {}},
      {"dynamic order, cut",
       tensor([](auto& t) {
         t.settings.reordered = true;
         t.cols = 2048;
       }),
       {machete, exllama}},
      {"odd rows", tensor([](auto& t) { t.rows = 4096 + 32; }), {machete}, {marlin}},
      {"odd rows, dynamic order",
       tensor([](auto& t) {
         t.rows = 4096 + 32;
         t.settings.reordered = true;
       }),
       {marlin, machete}},
      {"odd columns",
       tensor([](auto& t) {
         t.cols = t.full_cols = 4096 + 32;
         t.settings.group_size = 32;
       }),
       {machete},
       {marlin}},
      {"rows of half a word of zeros",
       tensor([](auto& t) { t.rows = 4096 + 4; }),
       {machete, exllama, exllama_v2, triton},
       {marlin}},
  };
  for (const auto& row : rows) {
    for (const auto kernel : engine_kernels) {
      const auto is_in = [&](const auto& list) { return std::find(list.begin(), list.end(), kernel) != list.end(); };
      const auto expected = is_in(row.refused) ? Verdict::refuses : is_in(row.padded) ? Verdict::pads : Verdict::takes;

      const auto answer = ask(kernel, row.tensor);

      EXPECT_EQ(answer.verdict, expected) << row.name << ", " << name_of(kernel) << ": " << answer.reason;
      EXPECT_EQ(answer.reason.empty(), answer.verdict == Verdict::takes) << row.name << ", " << name_of(kernel);
    }
  }
}

ModelSpec golden_model(const std::string& folder) {
  const auto path = gptqd::test::source_path("tests/golden/models/" + folder);
  return describe_model(io::read_json(path / "config.json"), *io::CheckpointReader::open(path));
}

/// hidden 64, 4 heads of 16 and 2 kv heads, intermediate 112.
TensorParallel split_gqa(int size, const io::LayerSettings& settings) {
  return split(
      golden_model("llama-gqa-rope3"), io::ArtifactFormat::gptq,
      [&](const std::string&) { return std::optional(settings); }, size);
}

TEST(TensorParallel, OneGpuTakesEverything) {
  const auto got = split_gqa(1, {.bits = 4, .group_size = 16});

  EXPECT_THAT(got.obstacles, ::testing::IsEmpty());
  ASSERT_EQ(got.engines.size(), 2u);
  EXPECT_EQ(got.engines[1].takes, 8);  // four tensors a block: qkv, o, gate_up, down
  EXPECT_EQ(got.engines[1].tensors, 8);
}

TEST(TensorParallel, WholeGroupsAndWordsOnEachGpu) {
  EXPECT_THAT(
      split_gqa(2, {.bits = 4, .group_size = 16}).obstacles,
      ::testing::ElementsAre(HasSubstr("down_proj: 56 input features a GPU are no multiple of the group size")));
  EXPECT_THAT(split_gqa(2, {.bits = 4, .group_size = 8}).obstacles, ::testing::IsEmpty());
  EXPECT_THAT(split_gqa(2, {.bits = 4, .group_size = -1}).obstacles, ::testing::IsEmpty());
  EXPECT_THAT(split_gqa(2, {.bits = 4, .group_size = 16, .reordered = true}).obstacles, ::testing::IsEmpty());
  EXPECT_THAT(split_gqa(4, {.bits = 2, .group_size = -1}).obstacles, ::testing::Contains(HasSubstr("whole words")));
}

TEST(TensorParallel, HeadsAreNotCutAndFewKvHeadsAreRepeated) {
  EXPECT_THAT(split_gqa(8, {.bits = 8, .group_size = -1}).obstacles, ::testing::Contains(HasSubstr("4 heads")));
  EXPECT_THAT(split_gqa(3, {.bits = 8, .group_size = -1}).obstacles, ::testing::Contains(HasSubstr("4 heads")));
  // 4 GPUs, 2 kv heads: each is there twice.
  EXPECT_THAT(split_gqa(4, {.bits = 8, .group_size = -1}).obstacles, ::testing::IsEmpty());
}

TEST(TensorParallel, AnObstacleOfEveryBlockIsSaidOnce) {
  const auto got = split_gqa(2, {.bits = 4, .group_size = 16});

  EXPECT_EQ(got.obstacles.size(), 1u);
  EXPECT_THAT(got.kernels, ::testing::IsEmpty());
}

TEST(TensorParallel, LinearsThatStayFloatAreNoObstacle) {
  const auto got = split(
      golden_model("llama-gqa-rope3"), io::ArtifactFormat::gptq,
      [](const std::string& module) {
        return module.ends_with("down_proj") ? std::nullopt
                                             : std::optional(io::LayerSettings{.bits = 4, .group_size = 16});
      },
      2);

  EXPECT_THAT(got.obstacles, ::testing::IsEmpty());
  EXPECT_EQ(got.engines[0].tensors, 6);
}

}  // namespace
}  // namespace gptqd::pipeline
