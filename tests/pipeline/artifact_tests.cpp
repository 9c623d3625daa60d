#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "gptq/quant_spec.hpp"
#include "io/artifact/artifact_format.hpp"
#include "io/json_file.hpp"
#include "pipeline/artifact.hpp"
#include "pipeline/fingerprint.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using test::error_of;
using ::testing::HasSubstr;

Source source(const char* name = "opt-pre") { return open_source(source_path("tests/golden/models") / name); }

nlohmann::json fingerprint_of(const gptq::QuantSpec& spec, bool true_sequential = true) {
  return {{"spec", gptq::to_json(spec)}, {"true_sequential", true_sequential}};
}

/// What the default format's configuration says of a run on opt-pre.
nlohmann::json quantization_config(const nlohmann::json& fingerprint) {
  const Source model = source();
  const auto content = content_of_source(fingerprint, model);
  return io::make_tensor_format(default_format(fingerprint), content.dtype)->quantization_config(content);
}

TEST(QuantizationConfig, SymmetricStaticIsTheFormatThatEveryEngineReads) {
  const auto fingerprint = fingerprint_of({.bits = 4, .group_size = 128});

  const auto config = quantization_config(fingerprint);

  EXPECT_EQ(config.at("quant_method"), "gptq");
  EXPECT_EQ(config.at("bits"), 4);
  EXPECT_EQ(config.at("group_size"), 128);
  EXPECT_EQ(config.at("sym"), true);
  EXPECT_EQ(config.at("desc_act"), false);
  EXPECT_EQ(config.at("static_groups"), true);
  EXPECT_EQ(config.at("checkpoint_format"), "gptq");
  EXPECT_EQ(config.at("pack_dtype"), "int32");
  EXPECT_EQ(config.at("lm_head"), false);
  EXPECT_EQ(config.at("true_sequential"), true);
  EXPECT_EQ(config.at("damp_percent"), 0.01);
  EXPECT_EQ(config.at("meta").at("fingerprint"), fingerprint_hash(fingerprint));
  EXPECT_THAT(config.at("meta").at("quantizer").at(0).get<std::string>(), ::testing::StartsWith("gptq-dist:"));
}

TEST(QuantizationConfig, AsymmetricZerosNeedTheSecondFormat) {
  const auto config = quantization_config(fingerprint_of({.bits = 3, .group_size = -1, .symmetric = false}, false));

  EXPECT_EQ(config.at("checkpoint_format"), "gptq_v2");
  EXPECT_EQ(config.at("sym"), false);
  EXPECT_EQ(config.at("group_size"), -1);
  EXPECT_EQ(config.at("true_sequential"), false);
}

TEST(QuantizationConfig, OnlyDynamicActOrderSetsDescAct) {
  for (const auto order : {gptq::ActOrder::none, gptq::ActOrder::fixed, gptq::ActOrder::dynamic}) {
    const auto config = quantization_config(fingerprint_of({.act_order = order}));

    EXPECT_EQ(config.at("desc_act"), order == gptq::ActOrder::dynamic);
    EXPECT_EQ(config.at("static_groups"), order == gptq::ActOrder::fixed);
  }
}

TEST(QuantizationConfig, ListsTheModulesOfABlockByTheirSharedInputs) {
  const auto config = quantization_config(fingerprint_of({}));

  EXPECT_EQ(
      config.at("modules_in_block_to_quantize"),
      nlohmann::json::parse(
          R"([["self_attn.q_proj","self_attn.k_proj","self_attn.v_proj"],["self_attn.out_proj"],["fc1"],["fc2"]])"));
}

TEST(QuantizedModules, AreTheLinearsOfEveryBlock) {
  const auto modules = quantized_modules(fingerprint_of({}), source().model);

  ASSERT_EQ(modules.size(), 3u);
  EXPECT_THAT(modules[2], ::testing::ElementsAre(
                              "model.decoder.layers.2.self_attn.q_proj", "model.decoder.layers.2.self_attn.k_proj",
                              "model.decoder.layers.2.self_attn.v_proj", "model.decoder.layers.2.self_attn.out_proj",
                              "model.decoder.layers.2.fc1", "model.decoder.layers.2.fc2"));
}

TEST(ContentOfSource, EveryTensorPassesOrIsQuantized) {
  const Source model = source("opt-post");

  const auto content = content_of_source(fingerprint_of({.group_size = 16}), model);

  std::set<std::string> names(content.passing.begin(), content.passing.end());
  for (const auto& block : content.blocks) {
    for (const auto& layer : block) {
      EXPECT_TRUE(names.insert(layer.module + ".weight").second) << layer.module;
      EXPECT_EQ(layer.settings, content.settings);
    }
  }
  const auto all = model.tensors->names();
  EXPECT_EQ(names, std::set<std::string>(all.begin(), all.end()));
  EXPECT_THAT(content.float_linears,
              ::testing::ElementsAre("lm_head", "model.decoder.project_in", "model.decoder.project_out"));
}

TEST(ContentOfSource, AWholeRowAsGroupHasNoOrderOfGroups) {
  const auto reordered = [](std::int64_t group_size) {
    const Source model = source();
    return content_of_source(fingerprint_of({.group_size = group_size, .act_order = gptq::ActOrder::dynamic}), model)
        .settings.reordered;
  };

  EXPECT_TRUE(reordered(16));
  EXPECT_FALSE(reordered(-1));
}

TEST(ReadShard, RefusesAShardOfAnotherRunWithBothFingerprints) {
  const TemporaryFolder work;
  const io::ShardStore store(work.path());
  store.write({.block = 2, .fingerprint = "aaaa", .spec = {{"bits", 4}}, .linears = {}, .run = {}});

  EXPECT_EQ(read_shard(store, 2, "aaaa").block, 2);
  const Error error = error_of([&] { read_shard(store, 2, "bbbb"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), ::testing::AllOf(HasSubstr("block_00002.h5"), HasSubstr("aaaa"), HasSubstr("bbbb")));
}

}  // namespace
}  // namespace gptqd::pipeline
