#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/artifact/artifact_format.hpp"
#include "io/artifact/gptq_dynamic.hpp"
#include "io/json_file.hpp"
#include "pipeline/artifact.hpp"
#include "pipeline/family.hpp"
#include "pipeline/layer_specs.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::source_path;
using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

ModelSpec model_of(const std::string& folder) {
  const auto path = source_path("jobs/demo/" + folder);
  return describe_model(io::read_json(path / "config.json"), *io::CheckpointReader::open(path));
}

LayerSpecs resolve(const std::vector<LayerRule>& rules, const gptq::QuantSpec& base = {.clip = Clip::hessian}) {
  return LayerSpecs::resolve(model_of("llama-7m"), base, rules, true);
}

nlohmann::json fingerprint_of(const LayerSpecs& layers) {
  return {{"spec", gptq::to_json(layers.base())}, {"layers", layers.to_json()}, {"true_sequential", true}};
}

std::string usage_error_of(const std::vector<LayerRule>& rules) {
  const auto error = error_of([&] { resolve(rules); });
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  return error.one_line();
}

TEST(LayerRules, SettingsStandBehindTheLastEqualsSign) {
  const auto rule = parse_override("a=b(?=c)=bits:8,group:-1,sym:false");

  EXPECT_EQ(rule.pattern, "a=b(?=c)");
  EXPECT_EQ(rule.bits, 8);
  EXPECT_EQ(rule.group_size, -1);
  EXPECT_EQ(rule.symmetric, false);
}

TEST(LayerRules, WhatIsNotUnderstoodIsRefused) {
  for (const char* text : {"", "=bits:8", "x", "x=", "x=bits", "x=bits:", "x=bits:8x", "x=bits:8,", "x=bits:8,bits:4",
                           "x=sym:1", "x=damping:1", "x=group:99999999999999999999"}) {
    EXPECT_EQ(error_of([&] { parse_override(text); }).kind(), ErrorKind::usage) << text;
  }
  for (const char* text : {"", "skip", "0=skip", "-1=skip", "x=skip", "2=", "2=other"}) {
    EXPECT_EQ(error_of([&] { parse_first_blocks(text); }).kind(), ErrorKind::usage) << text;
    EXPECT_EQ(error_of([&] { parse_last_blocks(text); }).kind(), ErrorKind::usage) << text;
  }
  EXPECT_EQ(error_of([] { parse_skip(""); }).kind(), ErrorKind::usage);
}

TEST(LayerSpecs, WithoutRulesAllLinearsHaveTheRunsSettings) {
  const auto layers = resolve({});

  EXPECT_EQ(layers.find("model.layers.3.mlp.up_proj")->bits, 4);
  EXPECT_EQ(layers.to_json(), nlohmann::json::object());
  EXPECT_EQ(layers.distinct().size(), 1u);
}

TEST(LayerSpecs, ALaterRuleHoldsOverAnEarlierOneAndASkipOverAll) {
  const auto layers = resolve({parse_skip("layers\\.4\\..*down"), parse_first_blocks("2=bits:8"),
                               parse_last_blocks("1=bits:3,group:64"), parse_override("layers\\.1\\..*o_proj=bits:2"),
                               parse_override("down_proj$=group:32")});

  EXPECT_EQ(layers.find("model.layers.0.self_attn.o_proj")->bits, 8);
  EXPECT_EQ(layers.find("model.layers.1.self_attn.o_proj")->bits, 2);
  EXPECT_EQ(layers.find("model.layers.1.self_attn.o_proj")->group_size, 128);
  EXPECT_EQ(layers.find("model.layers.1.mlp.down_proj")->group_size, 32);
  EXPECT_EQ(layers.find("model.layers.1.mlp.down_proj")->bits, 8);
  EXPECT_EQ(layers.find("model.layers.2.mlp.up_proj")->bits, 4);
  EXPECT_EQ(layers.find("model.layers.4.mlp.down_proj"), nullptr);
  EXPECT_EQ(layers.find("model.layers.5.mlp.up_proj")->bits, 3);
  EXPECT_EQ(layers.find("model.layers.5.mlp.up_proj")->group_size, 64);
  EXPECT_EQ(layers.to_json().at("model.layers.1.mlp.down_proj"), nlohmann::json({{"bits", 8}, {"group_size", 32}}));
  EXPECT_TRUE(layers.to_json().at("model.layers.4.mlp.down_proj").is_null());
}

TEST(LayerSpecs, ARowAsOneGroupBringsTheClipThatCanBeHadForIt) {
  const auto layers = resolve({parse_override("down_proj=group:-1")});

  EXPECT_EQ(layers.find("model.layers.0.mlp.down_proj")->clip, Clip::mse);
  EXPECT_EQ(layers.find("model.layers.0.mlp.up_proj")->clip, Clip::hessian);
}

TEST(LayerSpecs, LinearsThatEnginesFuseNeedOneSetting) {
  EXPECT_THAT(
      usage_error_of({parse_override("q_proj=bits:8")}),
      AllOf(HasSubstr("layers.0.self_attn.q_proj"), HasSubstr("k_proj"), HasSubstr("8 bits"), HasSubstr("one tensor")));
  EXPECT_THAT(usage_error_of({parse_skip("gate_proj")}), AllOf(HasSubstr("gate_proj"), HasSubstr("up_proj")));
}

TEST(LayerSpecs, RulesThatCannotBeMeantAreRefused) {
  EXPECT_THAT(usage_error_of({parse_override("mlp.dwn_proj=bits:8")}),
              AllOf(HasSubstr("--override 'mlp.dwn_proj=bits:8' fits no linear"), HasSubstr("mlp.down_proj")));
  EXPECT_THAT(usage_error_of({parse_skip("(")}), HasSubstr("--skip '('"));
  EXPECT_THAT(usage_error_of({parse_override("down_proj=bits:5")}),
              AllOf(HasSubstr("model.layers.0.mlp.down_proj"), HasSubstr("got 5")));
  EXPECT_THAT(usage_error_of({parse_skip(".")}), HasSubstr("nothing is left"));
}

/// The checkpoint's configuration gives every module the settings that the run gave it.
void expect_settings_in_configuration(const LayerSpecs& layers) {
  const auto path = source_path("jobs/demo/llama-7m");
  const Source source{.tensors = io::CheckpointReader::open(path),
                      .config = io::read_json(path / "config.json"),
                      .model = model_of("llama-7m")};
  const auto content = content_of_source(fingerprint_of(layers), source);
  const auto config =
      io::make_tensor_format(io::ArtifactFormat::gptq_v2, source.model.dtype)->quantization_config(content);
  const io::LayerSettings base{
      .bits = config.at("bits"), .group_size = config.at("group_size"), .sym = config.at("sym")};
  const io::GptqDynamic dynamic(config.value("dynamic", nlohmann::json()), "test");
  for (const auto& block : source.model.blocks) {
    for (const auto& linear : block.linears()) {
      const auto* spec = layers.find(linear.module);
      const auto got = dynamic.apply(base, linear.module);
      ASSERT_EQ(got.has_value(), spec != nullptr) << linear.module;
      if (spec != nullptr) {
        EXPECT_EQ(*got, (io::LayerSettings{.bits = spec->bits, .group_size = spec->group_size, .sym = spec->symmetric}))
            << linear.module;
      }
    }
  }
}

TEST(LayerSpecs, ReachTheArtifactsConfiguration) {
  expect_settings_in_configuration(resolve({}));
  expect_settings_in_configuration(
      resolve({parse_first_blocks("2=bits:8"), parse_override("down_proj$=bits:2,group:32,sym:false"),
               parse_skip("layers\\.[34]\\.self_attn")}));
}

TEST(LayerSpecs, OneAsymmetricLayerNeedsTheSecondFormat) {
  EXPECT_EQ(default_format(fingerprint_of(resolve({}))), io::ArtifactFormat::gptq);
  EXPECT_EQ(default_format(fingerprint_of(resolve({parse_override("down_proj=sym:false")}))),
            io::ArtifactFormat::gptq_v2);
}

}  // namespace
}  // namespace gptqd::pipeline
