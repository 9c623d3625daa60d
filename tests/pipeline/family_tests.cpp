/// @file What the families read from a config.json, and what they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/json_file.hpp"
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
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Describes a golden model with keys of its config.json changed; a null removes a key.
ModelSpec describe(const std::string& name, const nlohmann::json& changes = nlohmann::json::object(),
                   const std::string& file = "config.json") {
  const auto folder = source_path("tests/golden/models/" + name);
  auto config = io::read_json(folder / file);
  config.merge_patch(changes);
  return describe_model(config, *io::CheckpointReader::open(folder));
}

std::vector<std::int64_t> windows(const ModelSpec& model) {
  std::vector<std::int64_t> all;
  for (const auto& block : model.blocks) {
    all.push_back(block.attention.window);
  }
  return all;
}

TEST(BloomFamily, ABlock) {
  const auto model = describe("bloom-pow2");
  const auto& block = model.blocks.at(1);

  EXPECT_EQ(model.model_type, "bloom");
  EXPECT_EQ(model.max_positions, unlimited_positions);
  EXPECT_EQ(model.head, model.token_table);
  ASSERT_TRUE(model.embedding_norm);
  EXPECT_EQ(model.embedding_norm->module, "transformer.word_embeddings_layernorm");
  EXPECT_FLOAT_EQ(model.embedding_norm->epsilon, 1e-3f);
  EXPECT_FALSE(model.rope);
  EXPECT_EQ(block.prefix, "transformer.h.1.");
  ASSERT_EQ(block.attention_in.size(), 1u);
  EXPECT_EQ(block.attention_in[0].module, "transformer.h.1.self_attention.query_key_value");
  EXPECT_EQ(block.attention_in[0].rows, 144);
  EXPECT_EQ(block.attention.layout, HeadLayout::by_head);
  EXPECT_FALSE(block.gated);
  EXPECT_EQ(block.activation, Activation::gelu_tanh);
  EXPECT_EQ(block.mlp_in.front().rows, 192);
}

TEST(BloomFamily, SlopesOfAPowerOfTwo) {
  const auto slopes = describe("bloom-pow2").blocks[0].attention.alibi_slopes;

  EXPECT_THAT(slopes, ElementsAre(0.25f, 0.0625f, 0.015625f, 0.00390625f));
}

TEST(BloomFamily, SlopesOfOtherNumbersTakeEverySecondOfTheNextPower) {
  const auto slopes = describe("bloom-odd").blocks[0].attention.alibi_slopes;

  EXPECT_THAT(slopes, ElementsAre(0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f));
}

TEST(BloomFamily, BothResidualConventions) {
  EXPECT_EQ(describe("bloom-pow2").blocks[0].norm_placement, NormPlacement::before);
  EXPECT_EQ(describe("bloom-postln").blocks[0].norm_placement, NormPlacement::before_residual);
}

TEST(LlamaFamily, ABlockWithGroupedQueries) {
  const auto model = describe("llama-gqa-rope3");
  const auto& block = model.blocks.at(1);

  EXPECT_EQ(model.head, "lm_head.weight");
  EXPECT_EQ(model.max_positions, 128);
  ASSERT_TRUE(model.rope);
  EXPECT_EQ(model.rope->kind, RopeSpec::Kind::llama3);
  EXPECT_EQ(model.rope->original_positions, 64);
  EXPECT_EQ(model.final_norm->kind, NormKind::rms);
  ASSERT_EQ(block.attention_in.size(), 3u);
  EXPECT_EQ(block.attention_in[0].rows, 64);
  EXPECT_EQ(block.attention_in[1].rows, 32);
  EXPECT_EQ(block.attention.kv_heads, 2);
  ASSERT_EQ(block.mlp_in.size(), 2u);
  EXPECT_EQ(block.mlp_in[0].module, "model.layers.1.mlp.gate_proj");
  EXPECT_EQ(block.mlp_in[1].module, "model.layers.1.mlp.up_proj");
  EXPECT_TRUE(block.gated);
  EXPECT_EQ(block.activation, Activation::silu);
  EXPECT_FALSE(block.attention_in[0].bias);
  EXPECT_EQ(block.norms().size(), 2u);
  EXPECT_EQ(block.output_width(Phase::attention_in), 128);
}

TEST(LlamaFamily, BiasesWhereTheConfigSaysSo) {
  const auto model = describe("llama-bias");
  for (const auto& linear : model.blocks[0].linears()) {
    EXPECT_TRUE(linear.bias) << linear.module;
  }
}

TEST(LlamaFamily, DynamicRopeStretchesTheLongestWindow) { EXPECT_EQ(describe("llama-rope-dynamic").max_positions, 64); }

TEST(MistralFamily, EveryBlockHasTheWindowOrNone) {
  EXPECT_THAT(windows(describe("mistral-window")), ElementsAre(12, 12));
  EXPECT_THAT(windows(describe("mistral-window", {{"sliding_window", nullptr}})), ElementsAre(0, 0));
}

TEST(MistralFamily, HeadDimMayBeNull) {
  const auto attention = describe("llama-mha", {{"model_type", "mistral"}, {"head_dim", nullptr}}).blocks[0].attention;

  EXPECT_EQ(attention.head_dim, 12);
}

TEST(Qwen2Family, BiasesOfQueryKeyAndValueAlone) {
  const auto model = describe("qwen2-bias");
  const auto& block = model.blocks[0];

  EXPECT_EQ(model.head, model.token_table);
  for (const auto& linear : block.attention_in) {
    EXPECT_TRUE(linear.bias);
  }
  EXPECT_FALSE(block.attention_out.bias);
  EXPECT_FALSE(block.mlp_in[0].bias);
}

TEST(Qwen2Family, WindowsByLayerTypesOrByTheirOlderKeys) {
  EXPECT_THAT(windows(describe("qwen2-mixed-window")), ElementsAre(0, 8, 8));
  EXPECT_THAT(windows(describe("qwen2-mixed-window", nlohmann::json::object(), "config.classic.json")),
              ElementsAre(0, 8, 8));
  EXPECT_THAT(windows(describe("qwen2-bias", nlohmann::json::object(), "config.classic.json")), ElementsAre(0, 0));
}

TEST(Qwen3Family, NormsOfEachHead) {
  const auto block = describe("qwen3-norm").blocks.at(1);

  ASSERT_TRUE(block.attention.query_norm);
  EXPECT_EQ(block.attention.query_norm->module, "model.layers.1.self_attn.q_norm");
  EXPECT_EQ(block.attention.query_norm->width, 24);
  EXPECT_EQ(block.norms().size(), 4u);
  EXPECT_EQ(block.attention_out.cols, 96);
}

TEST(Phi3Family, FusedTensorsAndPartialRotation) {
  const auto model = describe("phi3-partial");
  const auto& block = model.blocks[0];

  EXPECT_EQ(model.rope->width, 4);
  ASSERT_EQ(block.attention_in.size(), 1u);
  EXPECT_EQ(block.attention_in[0].module, "model.layers.0.self_attn.qkv_proj");
  EXPECT_EQ(block.attention_in[0].rows, 64);
  EXPECT_EQ(block.mlp_in[0].rows, 96);
  EXPECT_EQ(block.mlp_out.cols, 48);
  EXPECT_EQ(block.attention.layout, HeadLayout::by_projection);
}

struct Refusal {
  std::string name;
  std::string model;
  nlohmann::json changes;
  std::vector<std::string> words;
};
void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

class FamilyRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(FamilyRefuses, WhatItDoesNotDoByName) {
  const Error error = error_of([&] { describe(GetParam().model, GetParam().changes); });

  EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
  for (const auto& word : GetParam().words) {
    EXPECT_THAT(error.message(), HasSubstr(word));
  }
}

nlohmann::json rope(const nlohmann::json& parameters) { return {{"rope_parameters", parameters}}; }

const std::vector<Refusal> refusals{
    {"unknown_activation", "llama-mha", {{"hidden_act", "relu2"}}, {"LLaMA", "hidden_act", "relu2", "silu"}},
    {"exact_gelu", "llama-mha", {{"hidden_act", "gelu"}}, {"hidden_act \"gelu\""}},
    {"unknown_rope_type", "llama-mha", rope({{"rope_type", "spiral"}}), {"spiral", "yarn"}},
    {"rope_factor_missing", "llama-mha", rope({{"rope_type", "linear"}}), {"rope_parameters", "factor"}},
    {"rope_factor_negative", "llama-mha", rope({{"rope_type", "linear"}, {"factor", -2}}), {"factor", "-2"}},
    {"rope_factor_text", "llama-mha", rope({{"rope_type", "linear"}, {"factor", "two"}}), {"factor"}},
    {"rope_that_is_no_object",
     "llama-mha",
     {{"rope_parameters", nullptr}, {"rope_scaling", 3}},
     {"rope_scaling", "object"}},
    {"llama3_frequencies_crossed",
     "llama-gqa-rope3",
     rope({{"low_freq_factor", 8.0}}),
     {"high_freq_factor 4", "low_freq_factor 8"}},
    {"longrope_of_another_size",
     "phi3-longrope-long",
     rope({{"long_factor", {1.0, 2.0}}}),
     {"long_factor", "2 numbers", "4"}},
    {"theta_of_one", "llama-mha", rope({{"rope_theta", 1.0}}), {"rope_theta 1"}},
    {"odd_rotation", "llama-mha", rope({{"partial_rotary_factor", 0.3}}), {"head_dim 12", "even"}},
    {"soft_capped_logits", "llama-mha", {{"final_logit_softcapping", 30.0}}, {"final_logit_softcapping 30"}},
    {"soft_capped_attention", "qwen2-bias", {{"attn_logit_softcapping", 50.0}}, {"attn_logit_softcapping 50"}},
    {"experts", "qwen3-norm", {{"num_experts", 64}}, {"num_experts 64"}},
    {"residual_multiplier", "llama-mha", {{"residual_multiplier", 0.22}}, {"residual_multiplier 0.22"}},
    {"heads_not_in_groups",
     "llama-mha",
     {{"num_key_value_heads", 3}},
     {"num_attention_heads 4", "num_key_value_heads 3"}},
    {"unknown_layer_type",
     "qwen2-mixed-window",
     {{"layer_types", {"full_attention", "linear_attention", "full_attention"}}},
     {"linear_attention"}},
    {"layer_types_of_another_number",
     "qwen2-mixed-window",
     {{"layer_types", {"full_attention"}}},
     {"1 layer_types", "3"}},
    {"bloom_heads_that_do_not_divide", "bloom-pow2", {{"n_head", 5}}, {"hidden_size 48", "n_head 5"}},
    {"epsilon_of_zero", "bloom-pow2", {{"layer_norm_epsilon", 0.0}}, {"layer_norm_epsilon 0"}},
    {"qwen3_without_its_norms", "qwen2-bias", {{"model_type", "qwen3"}}, {"self_attn.q_norm.weight"}},
    {"vocabulary_of_another_size",
     "llama-mha",
     {{"vocab_size", 161}},
     {"embed_tokens.weight", "[160, 48]", "[161, 48]"}},
    {"huge_sizes", "llama-mha", {{"hidden_size", 1e18}}, {"hidden_size"}},
};

INSTANTIATE_TEST_SUITE_P(All, FamilyRefuses, ::testing::ValuesIn(refusals),
                         [](const auto& info) { return info.param.name; });

TEST(FamilyRefuses, NeutralValuesOfWhatIsNotImplementedAreFine) {
  EXPECT_NO_THROW(describe("llama-mha", {{"final_logit_softcapping", nullptr}, {"residual_multiplier", 1.0}}));
}

}  // namespace
}  // namespace gptqd::pipeline
