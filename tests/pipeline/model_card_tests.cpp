#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pipeline/model_card.hpp"

namespace gptqd::pipeline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

io::ArtifactContent content_of(const std::string& name) {
  io::ArtifactContent content;
  content.folder = "/home/somebody/models";
  content.config = {{"_name_or_path", name}, {"architectures", {"LlamaForCausalLM"}}};
  content.settings = {.bits = 4, .group_size = 128};
  content.blocks = {{{.module = "layers.0.a", .rows = 128, .cols = 256, .settings = content.settings},
                     {.module = "layers.0.b", .rows = 128, .cols = 256, .settings = {.bits = 8, .group_size = -1}}}};
  content.float_linears = {"lm_head"};
  content.facts = {{"meta", {{"quantizer", {"gptq-dist:9"}}, {"fingerprint", "abc"}}}};
  return content;
}

TEST(ModelCard, NamesTheRepositoryButNoFolderOfTheMachine) {
  const auto card = model_card(io::ArtifactFormat::gptq, content_of("org/model-7b"), nullptr, nullptr);
  EXPECT_THAT(card, AllOf(HasSubstr("base_model: org/model-7b"), HasSubstr("# org/model-7b"), Not(HasSubstr("/home"))));

  for (const char* name : {"/home/somebody/model", "a/b/c", "../x", "model", "org/mo|del", "org/a b", ""}) {
    const auto other = model_card(io::ArtifactFormat::gptq, content_of(name), nullptr, nullptr);
    EXPECT_THAT(other, AllOf(Not(HasSubstr("base_model")), HasSubstr("# LlamaForCausalLM"))) << name;
  }
}

TEST(ModelCard, TellsSettingsSizesAndTheRun) {
  const nlohmann::json fingerprint = {
      {"spec", {{"method", "gptq"}, {"act_order", "static"}, {"clip", "hessian"}, {"damping", 0.01}}},
      {"true_sequential", true},
      {"calibration", {{"samples", 128}, {"seqlen", 2048}, {"hash", "cafe"}}},
      {"model", {{"files", {{{"name", "model.safetensors"}, {"bytes", 12}, {"header", "beef"}}}}}}};
  LayerTable table;
  const auto record = [](const char* name, double loss) {
    return nlohmann::json{{"name", name}, {"loss", loss}, {"rtn_loss", 0.02}, {"retries", 1}, {"fallback", false}};
  };
  table.add(0, record("layers.0.a", 0.01), nullptr);
  table.add(0, record("layers.0.b", 0.005), nullptr);

  const auto card = model_card(io::ArtifactFormat::compressed_tensors, content_of("org/m"), &fingerprint, &table);

  EXPECT_THAT(card, AllOf(HasSubstr("1 linears: 4 bits, groups of 128, symmetric"), HasSubstr("act-order static"),
                          HasSubstr("128 windows of 2048 tokens (XXH3-128 cafe)"), HasSubstr("beef"),
                          HasSubstr("| fingerprint of the run | abc |"),
                          HasSubstr("| 0 | 0.354 | 1.00e-02 | `layers.0.a` | 2 | 0 |"), HasSubstr("vllm serve")));
  // 4 and 8 bits, with scales of 16 bits for 128 and 256 weights: (4.125 + 8.0625) / 2
  EXPECT_THAT(card, HasSubstr("| 6.094 |"));
}

TEST(ModelCard, PerplexitiesAreAddedOnceAndReplaced) {
  const auto entry = [](double perplexity) {
    return nlohmann::json::array({{{"text", "/tmp/x/eval.txt"},
                                   {"hash", "h"},
                                   {"windows", 4},
                                   {"seqlen", 128},
                                   {"perplexity", perplexity},
                                   {"source_perplexity", 9.5}}});
  };
  const auto once = with_perplexity("# card\n", entry(10));
  const auto again = with_perplexity(once, entry(11));

  EXPECT_THAT(once, AllOf(HasSubstr("# card\n"),
                          HasSubstr("eval.txt (XXH3-128 of the tokens h) | 4 of 128 tokens | "
                                    "10.0000 | 9.5000 |"),
                          Not(HasSubstr("/tmp"))));
  EXPECT_THAT(again, AllOf(HasSubstr("11.0000"), Not(HasSubstr("10.0000"))));
  EXPECT_EQ(once.size(), again.size());
}

}  // namespace
}  // namespace gptqd::pipeline
