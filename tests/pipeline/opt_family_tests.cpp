#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

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
using ::testing::AllOf;
using ::testing::HasSubstr;

ModelSpec describe(const std::filesystem::path& folder, const std::string& config = "config.json") {
  return describe_model(io::read_json(folder / config), *io::CheckpointReader::open(folder));
}

/// Describes a changed copy of opt-pre.
ModelSpec describe_copy(const std::function<void(HostModel&)>& change) {
  const TemporaryFolder folder;
  auto model = HostModel::read(source_path("tests/golden/models/opt-pre"));
  change(model);
  model.write(folder.path());
  return describe(folder.path());
}

TEST(OptFamily, PreNormModel) {
  const auto model = describe(source_path("tests/golden/models/opt-pre"));

  EXPECT_EQ(model.model_type, "opt");
  EXPECT_EQ(model.dtype, DType::f16);
  EXPECT_EQ(model.hidden, 48);
  EXPECT_EQ(model.vocabulary, 160);
  EXPECT_EQ(model.max_positions, 64);
  EXPECT_EQ(model.embedding_width, 48);
  EXPECT_EQ(model.token_table, "model.decoder.embed_tokens.weight");
  EXPECT_EQ(model.head, model.token_table);
  ASSERT_TRUE(model.positions);
  EXPECT_EQ(model.positions->tensor, "model.decoder.embed_positions.weight");
  EXPECT_EQ(model.positions->rows, 66);
  EXPECT_EQ(model.positions->offset, 2);
  EXPECT_FALSE(model.project_in);
  EXPECT_FALSE(model.project_out);
  ASSERT_TRUE(model.final_norm);
  EXPECT_EQ(model.final_norm->module, "model.decoder.final_layer_norm");
  ASSERT_EQ(model.blocks.size(), 3u);
  EXPECT_EQ(model.parameters(), 3 * (4 * 48 * 48 + 2 * 48 * 112));
}

TEST(OptFamily, ABlockOfThePreNormModel) {
  const auto model = describe(source_path("tests/golden/models/opt-pre"));
  const auto& block = model.blocks.at(1);

  EXPECT_EQ(block.prefix, "model.decoder.layers.1.");
  EXPECT_EQ(block.norm_placement, NormPlacement::before);
  EXPECT_EQ(block.attention_norm.module, "model.decoder.layers.1.self_attn_layer_norm");
  EXPECT_EQ(block.mlp_norm.module, "model.decoder.layers.1.final_layer_norm");
  EXPECT_EQ(block.attention.heads, 4);
  EXPECT_EQ(block.attention.kv_heads, 4);
  EXPECT_EQ(block.attention.head_dim, 12);
  EXPECT_FLOAT_EQ(block.attention.scale, 1 / std::sqrt(12.0f));
  EXPECT_EQ(block.activation, Activation::relu);
  const auto linears = block.linears();
  ASSERT_EQ(linears.size(), 6u);
  const std::vector<std::string> names{
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(linears[i].module, block.prefix + names[i]);
    EXPECT_TRUE(linears[i].bias);
    EXPECT_EQ(linears[i].rows, i == 4 ? 112 : 48);
    EXPECT_EQ(linears[i].cols, i == 5 ? 112 : 48);
  }
  EXPECT_EQ(block.input_width(Phase::mlp_out), 112);
}

TEST(OptFamily, PostNormModelWithProjections) {
  const auto model = describe(source_path("tests/golden/models/opt-post"));

  EXPECT_EQ(model.hidden, 48);
  EXPECT_EQ(model.embedding_width, 32);
  EXPECT_EQ(model.vocabulary, 157);
  EXPECT_FALSE(model.final_norm);
  ASSERT_TRUE(model.project_in);
  EXPECT_EQ(model.project_in->module, "model.decoder.project_in");
  EXPECT_EQ(model.project_in->rows, 48);
  EXPECT_EQ(model.project_in->cols, 32);
  ASSERT_TRUE(model.project_out);
  EXPECT_EQ(model.project_out->rows, 32);
  EXPECT_EQ(model.project_out->cols, 48);
  for (const auto& block : model.blocks) {
    EXPECT_EQ(block.norm_placement, NormPlacement::after);
  }
}

TEST(OptFamily, TheDemoModel) {
  const auto model = describe(source_path("jobs/demo/opt-7m"));

  EXPECT_EQ(model.hidden, 256);
  EXPECT_EQ(model.max_positions, 2048);
  EXPECT_EQ(model.blocks.size(), 6u);
  EXPECT_EQ(model.parameters(), 6 * (4 * 256 * 256 + 2 * 256 * 1024));
}

TEST(OptFamily, ClassicConfigurationsDescribeTheSameModel) {
  for (const char* name : {"tests/golden/models/opt-pre", "tests/golden/models/opt-post"}) {
    const auto now = describe(source_path(name));
    const auto classic = describe(source_path(name), "config.classic.json");

    EXPECT_EQ(classic.dtype, now.dtype);
    EXPECT_EQ(classic.hidden, now.hidden);
    EXPECT_EQ(classic.embedding_width, now.embedding_width);
    EXPECT_EQ(classic.final_norm.has_value(), now.final_norm.has_value());
    EXPECT_EQ(classic.parameters(), now.parameters());
    EXPECT_EQ(classic.blocks.front().norm_placement, now.blocks.front().norm_placement);
  }
}

TEST(OptFamily, OlderPrefixesOfTensorNamesAreFound) {
  for (const std::string prefix : {"decoder.", ""}) {
    const auto model = describe_copy([&](HostModel& copy) {
      for (auto& tensor : copy.tensors) {
        tensor.name = prefix + tensor.name.substr(std::string("model.decoder.").size());
      }
    });

    EXPECT_EQ(model.token_table, prefix + "embed_tokens.weight");
    EXPECT_EQ(model.blocks.back().mlp_out.module, prefix + "layers.2.fc2");
  }
}

TEST(OptFamily, AnUntiedHeadIsItsOwnTensor) {
  const auto model = describe_copy([](HostModel& copy) {
    copy.config["tie_word_embeddings"] = false;
    auto head = copy.at("model.decoder.embed_tokens.weight");
    head.name = "lm_head.weight";
    copy.tensors.push_back(head);
  });

  EXPECT_EQ(model.head, "lm_head.weight");
}

TEST(OptFamily, TheDtypeIsThatOfTheWeights) {
  const auto model = describe_copy([](HostModel& copy) {
    for (auto& tensor : copy.tensors) {
      tensor = to_dtype(tensor, DType::bf16);
    }
  });

  EXPECT_EQ(model.dtype, DType::bf16);
}

struct RefusedModel {
  std::string name;
  std::function<void(HostModel&)> change;
  std::vector<std::string> words;
};
void PrintTo(const RefusedModel& refusal, std::ostream* out) { *out << refusal.name; }

class OptFamilyRefuses : public ::testing::TestWithParam<RefusedModel> {};

TEST_P(OptFamilyRefuses, WhatItDoesNotDoByName) {
  const Error error = error_of([&] { describe_copy(GetParam().change); });

  EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
  for (const auto& word : GetParam().words) {
    EXPECT_THAT(error.message(), HasSubstr(word));
  }
}

HostModel& set(HostModel& model, const char* key, const nlohmann::json& value) {
  model.config[key] = value;
  return model;
}

const std::vector<RefusedModel> refused_models{
    {"gelu", [](HostModel& m) { set(m, "activation_function", "gelu"); }, {"activation_function", "gelu", "relu"}},
    {"norms_without_weights",
     [](HostModel& m) { set(m, "layer_norm_elementwise_affine", false); },
     {"layer_norm_elementwise_affine"}},
    {"unknown_model_type",
     [](HostModel& m) { set(m, "model_type", "brontosaurus"); },
     {"brontosaurus", "bloom, llama, mistral, opt, phi3, qwen2, qwen3"}},
    {"no_model_type", [](HostModel& m) { m.config.erase("model_type"); }, {"config.json", "model_type"}},
    {"model_type_that_is_no_text", [](HostModel& m) { set(m, "model_type", 3); }, {"config.json", "model_type"}},
    {"no_hidden_size", [](HostModel& m) { m.config.erase("hidden_size"); }, {"config.json", "hidden_size"}},
    {"hidden_size_that_is_text", [](HostModel& m) { set(m, "hidden_size", "wide"); }, {"config.json", "hidden_size"}},
    {"no_blocks", [](HostModel& m) { set(m, "num_hidden_layers", 0); }, {"num_hidden_layers", "is 0"}},
    {"absurdly_many_blocks", [](HostModel& m) { set(m, "num_hidden_layers", 1'000'000'000); }, {"num_hidden_layers"}},
    {"heads_that_do_not_divide", [](HostModel& m) { set(m, "num_attention_heads", 5); }, {"num_attention_heads 5"}},
    {"negative_heads", [](HostModel& m) { set(m, "num_attention_heads", -4); }, {"num_attention_heads", "is -4"}},
    {"more_blocks_than_the_files_have", [](HostModel& m) { set(m, "num_hidden_layers", 4); }, {"layers.3."}},
    {"other_vocabulary",
     [](HostModel& m) { set(m, "vocab_size", 161); },
     {"embed_tokens.weight", "[160, 48]", "[161, 48]"}},
    {"other_width", [](HostModel& m) { set(m, "ffn_dim", 96); }, {"fc1", "[112, 48]", "[96, 48]"}},
    {"other_number_of_positions",
     [](HostModel& m) { set(m, "max_position_embeddings", 65); },
     {"embed_positions.weight", "[66, 48]", "[67, 48]"}},
    {"missing_tensor",
     [](HostModel& m) { m.remove("model.decoder.layers.1.fc2.weight"); },
     {"model.decoder.layers.1.fc2.weight"}},
    {"missing_bias",
     [](HostModel& m) { m.remove("model.decoder.layers.2.fc1.bias"); },
     {"model.decoder.layers.2.fc1.bias"}},
    {"missing_norm",
     [](HostModel& m) { m.remove("model.decoder.final_layer_norm.weight"); },
     {"model.decoder.final_layer_norm.weight"}},
    {"no_tensors_of_the_family",
     [](HostModel& m) {
       m.tensors.erase(m.tensors.begin() + 1, m.tensors.end());
       m.tensors.front().name = "x";
     },
     {"embed_tokens.weight"}},
    {"untied_without_head", [](HostModel& m) { set(m, "tie_word_embeddings", false); }, {"lm_head.weight"}},
    {"weights_that_are_integers",
     [](HostModel& m) {
       auto& weight = m.at("model.decoder.layers.0.fc1.weight");
       weight.dtype = DType::i16;
     },
     {"fc1.weight", "I16"}},
};

INSTANTIATE_TEST_SUITE_P(All, OptFamilyRefuses, ::testing::ValuesIn(refused_models),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gptqd::pipeline
