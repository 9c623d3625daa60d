#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "pipeline/family.hpp"
#include "pipeline/source.hpp"
#include "pipeline/synthetic.hpp"
#include "tests/pipeline/error_of.hpp"

namespace gptqd::pipeline {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

std::vector<float> read_floats(const io::CheckpointReader& tensors, const std::string& name, std::int64_t first,
                               std::int64_t count) {
  std::vector<BFloat16> raw(static_cast<std::size_t>(count));
  tensors.read_range(tensors.at(name), first * size_of(DType::bf16), std::as_writable_bytes(std::span(raw)));
  std::vector<float> values;
  for (const auto value : raw) {
    values.push_back(to_float(value));
  }
  return values;
}

TEST(Synthetic, EveryShapeIsAModelOfItsSize) {
  const std::vector<std::pair<std::string, double>> parameters{
      {"opt-6.7b", 6.4e9},     {"opt-66b", 65.2e9},     {"opt-175b", 173.9e9},
      {"bloom-7b1", 6.0e9},    {"bloom-176b", 172.6e9}, {"llama-3-8b", 7.0e9},
      {"llama-3-70b", 68.5e9}, {"mistral-7b", 7.0e9},   {"qwen3-32b", 31.2e9}};
  for (const auto& [name, expected] : parameters) {
    const auto source = open_source("synthetic:" + name);

    EXPECT_NEAR(static_cast<double>(source.model.parameters()), expected, 0.01 * expected) << name;
  }
}

TEST(Synthetic, BlocksAndVocabularyMayBeOthers) {
  const auto source = open_source("synthetic:bloom-176b:blocks=2:vocab=1000");

  EXPECT_EQ(source.model.blocks.size(), 2u);
  EXPECT_EQ(source.model.vocabulary, 1000);
  EXPECT_EQ(source.model.hidden, 14336);
  EXPECT_EQ(source.model.dtype, DType::bf16);
}

TEST(Synthetic, AnyPartOfATensorIsTheSame) {
  const auto model = make_synthetic("synthetic:llama-3-8b:blocks=1:vocab=64");
  const std::string name = "model.layers.0.mlp.down_proj.weight";

  const auto whole = read_floats(*model.tensors, name, 0, 5000);
  const auto part = read_floats(*model.tensors, name, 1234, 777);

  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 1234));
}

TEST(Synthetic, WeightsSpreadByTheirInputs) {
  const auto model = make_synthetic("synthetic:llama-3-8b:blocks=2:vocab=64");
  const auto deviation = [&](const std::string& name) {
    double squares = 0;
    double sum = 0;
    const auto values = read_floats(*model.tensors, name, 1'000'000, 100'000);
    for (const double value : values) {
      squares += value * value;
      sum += value;
    }
    EXPECT_NEAR(sum / 1e5, 0.0, 1e-3);
    return std::sqrt(squares / 1e5);
  };

  EXPECT_NEAR(deviation("model.layers.1.self_attn.q_proj.weight"), 1 / 64.0, 2e-4);
  EXPECT_NEAR(deviation("model.layers.0.self_attn.o_proj.weight"), 1 / 64.0 / 2, 1e-4);
}

TEST(Synthetic, NormsAreAroundOne) {
  const auto model = make_synthetic("synthetic:qwen3-32b:blocks=1:vocab=64");

  EXPECT_THAT(read_floats(*model.tensors, "model.layers.0.self_attn.q_norm.weight", 0, 128),
              Each(AllOf(Ge(0.79f), Le(1.21f))));
}

TEST(Synthetic, TensorsDifferFromOneAnother) {
  const auto model = make_synthetic("synthetic:llama-3-8b:blocks=2:vocab=64");

  EXPECT_NE(read_floats(*model.tensors, "model.layers.0.mlp.up_proj.weight", 0, 64),
            read_floats(*model.tensors, "model.layers.1.mlp.up_proj.weight", 0, 64));
}

TEST(Synthetic, TokensCoverTheVocabularyAndFollowTheSeed) {
  const auto windows = synthetic_tokens(100, 4, 1000, 0);

  EXPECT_EQ(windows.samples, 4);
  EXPECT_EQ(windows.seqlen, 1000);
  EXPECT_THAT(windows.ids, Each(AllOf(Ge(0), Le(99))));
  EXPECT_THAT(windows.ids, AllOf(::testing::Contains(0), ::testing::Contains(99)));
  EXPECT_EQ(windows, synthetic_tokens(100, 4, 1000, 0));
  EXPECT_NE(windows, synthetic_tokens(100, 4, 1000, 1));
}

TEST(Synthetic, RefusesWhatIsNotThere) {
  for (const auto& [name, word] :
       std::vector<std::pair<std::string, std::string>>{{"synthetic:gpt-5", "gpt-5"},
                                                        {"synthetic:", "no shape \"\""},
                                                        {"synthetic:opt-66b:layers=2", "layers=2"},
                                                        {"synthetic:opt-66b:blocks=0", "blocks=0"},
                                                        {"synthetic:opt-66b:blocks=two", "blocks=two"},
                                                        {"synthetic:opt-66b:vocab=99999999999999999999", "vocab="}}) {
    const Error error = error_of([&] { make_synthetic(name); });

    EXPECT_EQ(error.kind(), ErrorKind::usage) << name;
    EXPECT_THAT(error.message(), AllOf(HasSubstr(word), HasSubstr("llama-3-8b")));
  }
}

}  // namespace
}  // namespace gptqd::pipeline
