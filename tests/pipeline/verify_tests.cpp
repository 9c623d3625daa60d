#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "pipeline/verify/verify.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/pipeline/tiny_artifact.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::pipeline {
namespace {

namespace fs = std::filesystem;
using gptqd::test::HostModel;
using gptqd::test::HostTensor;
using gptqd::test::TemporaryFolder;
using test::tiny_artifact;
using test::tiny_source;
using test::TinyOptions;
using ::testing::HasSubstr;

using Change = std::function<void(HostModel& artifact)>;

VerifyReport verify(const fs::path& folder, bool against = true, const TinyOptions& options = {}) {
  VerifyRequest request{.artifact = folder};
  if (against) {
    request.against = tiny_source(options);
  }
  return verify_artifact(request, [](const std::string&) {});
}

VerifyReport verify_changed(const Change& change, bool against = true, const TinyOptions& options = {}) {
  const TemporaryFolder folder;
  auto artifact = tiny_artifact(options);
  change(artifact);
  artifact.write(folder / "artifact");
  return verify(folder / "artifact", against, options);
}

const Check& check_of(const VerifyReport& report, const std::string& name) {
  for (const auto& check : report.checks) {
    if (check.name == name) {
      return check;
    }
  }
  throw std::out_of_range(name);
}

std::string text_of(const Check& check) {
  std::string text = check.summary;
  for (const auto& finding : check.findings) {
    text += "\n" + finding.text;
  }
  return text;
}

std::span<std::uint32_t> words(HostTensor& tensor) {
  return {reinterpret_cast<std::uint32_t*>(tensor.data.data()), tensor.data.size() / sizeof(std::uint32_t)};
}

constexpr const char* q = "model.layers.0.self_attn.q_proj";
std::string named(const char* module, const char* suffix) { return std::string(module) + suffix; }

TEST(Verify, SoundArtifactsPassWhateverTheirFormatAndSettings) {
  const std::vector<TinyOptions> all{
      {},
      {.folder = "opt-pre"},
      {.folder = "bloom-pow2"},
      {.folder = "qwen2-bias"},
      {.folder = "phi3-fused"},
      {.folder = "llama-sharded", .settings = {.bits = 8, .group_size = -1}},
      {.settings = {.bits = 2, .group_size = 16}},
      {.format = io::ArtifactFormat::gptq_v2, .settings = {.bits = 4, .group_size = 16, .sym = false}},
      {.settings = {.bits = 4, .group_size = 16, .reordered = true}},
      {.format = io::ArtifactFormat::gptq_v2,
       .settings = {.bits = 8, .group_size = 16, .sym = false, .reordered = true}},
      {.format = io::ArtifactFormat::compressed_tensors},
      {.format = io::ArtifactFormat::compressed_tensors, .settings = {.bits = 4, .group_size = 8, .sym = false}},
      {.format = io::ArtifactFormat::compressed_tensors, .settings = {.bits = 8, .group_size = -1}},
      {.other_suffix = "down_proj", .other = {.bits = 8, .group_size = 8}, .float_suffix = "o_proj"},
      {.format = io::ArtifactFormat::compressed_tensors,
       .other_suffix = "down_proj",
       .other = {.bits = 8, .group_size = -1, .sym = false},
       .float_suffix = "o_proj"}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto report = verify_changed([](HostModel&) {}, true, all[i]);

    EXPECT_TRUE(report.passed()) << i << "\n" << report.to_text();
    EXPECT_EQ(report.format, name_of(all[i].format)) << i;
    EXPECT_FALSE(report.layers.empty()) << i;
    for (const auto& layer : report.layers) {
      EXPECT_GT(layer.difference->relative_error, 0) << i;
      EXPECT_LT(layer.difference->error_in_steps, 1.5) << i << " " << layer.format.module;
      EXPECT_LT(std::abs(layer.difference->mean_step), 0.2) << i << " " << layer.format.module;
    }
  }
}

struct Row {
  std::string name;
  Change change;
  std::string check;
  std::vector<std::string> words;
  TinyOptions options = {};
  bool against = false;
};

void expect_failure(const Row& row) {
  const auto report = verify_changed(row.change, row.against, row.options);

  EXPECT_FALSE(report.passed()) << row.name << "\n" << report.to_text();
  const auto& check = check_of(report, row.check);
  EXPECT_EQ(check.status, Check::Status::fail) << row.name << "\n" << report.to_text();
  for (const auto& word : row.words) {
    EXPECT_THAT(text_of(check), HasSubstr(word)) << row.name;
  }
}

nlohmann::json& config_of(HostModel& artifact) { return artifact.config["quantization_config"]; }

const TinyOptions compressed{.format = io::ArtifactFormat::compressed_tensors};
const TinyOptions asymmetric{.format = io::ArtifactFormat::gptq_v2,
                             .settings = {.bits = 4, .group_size = 16, .sym = false}};
const TinyOptions reordered{.settings = {.bits = 4, .group_size = 16, .reordered = true}};

TEST(Verify, AWrongConfigurationFails) {
  for (const auto& row : std::vector<Row>{
           {"other bits", [](HostModel& a) { config_of(a)["bits"] = 8; }, "layers", {q}},
           {"other group size", [](HostModel& a) { config_of(a)["group_size"] = 8; }, "layers", {"qzeros", "expected"}},
           {"an impossible group size", [](HostModel& a) { config_of(a)["group_size"] = -7; }, "opening", {"-7"}},
           {"an impossible width", [](HostModel& a) { config_of(a)["bits"] = 5; }, "opening", {"5 bits"}},
           {"an unknown method", [](HostModel& a) { config_of(a)["quant_method"] = "awq"; }, "opening", {"awq"}},
           {"an unknown format",
            [](HostModel& a) { config_of(a)["checkpoint_format"] = "marlin"; },
            "opening",
            {"marlin"}},
           {"no configuration",
            [](HostModel& a) { a.config.erase("quantization_config"); },
            "opening",
            {"quantization_config"}},
           {"v1 said to be v2",
            [](HostModel& a) { config_of(a)["checkpoint_format"] = "gptq_v2"; },
            "zeros",
            {q, "one step off"}},
           {"asymmetric said to be symmetric",
            [](HostModel& a) { config_of(a)["sym"] = true; },
            "zeros",
            {q, "symmetric"},
            asymmetric},
           {"order not said",
            [](HostModel& a) { config_of(a)["desc_act"] = false; },
            "layers",
            {q, "reordered"},
            reordered},
           {"a module left out",
            [](HostModel& a) { config_of(a)["modules_in_block_to_quantize"] = {{"self_attn.o_proj"}}; },
            "structure",
            {q, "leaves it unquantized"}},
           {"a module skipped",
            [](HostModel& a) {
              config_of(a)["dynamic"] = {{"-:.*q_proj", nlohmann::json::object()}};
            },
            "structure",
            {q}},
           {"a pattern that is none",
            [](HostModel& a) {
              config_of(a)["dynamic"] = {{"+:(", nlohmann::json::object()}};
            },
            "opening",
            {"("}},
           {"a target missing",
            [](HostModel& a) { config_of(a)["config_groups"]["group_0"]["targets"] = {"re:.*o_proj"}; },
            "structure",
            {q},
            compressed},
           {"ignored though packed",
            [](HostModel& a) { config_of(a)["ignore"].push_back(q); },
            "structure",
            {q},
            compressed},
           {"other sizes of the model",
            [](HostModel& a) { a.config["intermediate_size"] = 96; },
            "layers",
            {"config.json"}}}) {
    expect_failure(row);
  }
}

TEST(Verify, WrongTensorsFail) {
  const auto resize = [](HostTensor& tensor, std::vector<std::int64_t> shape) {
    std::int64_t bytes = size_of(tensor.dtype);
    for (const auto extent : shape) {
      bytes *= extent;
    }
    tensor.shape = std::move(shape);
    tensor.data.resize(static_cast<std::size_t>(bytes));
  };
  for (const auto& row : std::vector<Row>{
           {"no scales", [](HostModel& a) { a.remove(named(q, ".scales")); }, "layers", {"no tensor", q}},
           {"no zeros", [](HostModel& a) { a.remove(named(q, ".qzeros")); }, "layers", {q}},
           {"no codes", [](HostModel& a) { a.remove(named(q, ".qweight")); }, "structure", {"belongs to no complete"}},
           {"no norm", [](HostModel& a) { a.remove("model.norm.weight"); }, "model", {"model.norm.weight"}},
           {"packed and float",
            [](HostModel& a) {
              const auto source = HostModel::read(tiny_source());
              for (const auto& tensor : source.tensors) {
                if (tensor.name == named(q, ".weight")) {
                  a.tensors.push_back(tensor);
                }
              }
            },
            "structure",
            {"twice", q}},
           {"codes of another type",
            [](HostModel& a) { a.at(named(q, ".qweight")).dtype = DType::f32; },
            "layers",
            {"F32"}},
           {"scales of another shape",
            [&](HostModel& a) {
              resize(a.at(named(q, ".scales")), {4, 32});
            },
            "layers",
            {"scales", "[4, 32]"}},
           {"zeros of another shape",
            [&](HostModel& a) {
              resize(a.at(named(q, ".qzeros")), {2, 8});
            },
            "layers",
            {"qzeros"}},
           {"codes of another shape",
            [&](HostModel& a) {
              resize(a.at(named(q, ".qweight")), {8, 32});
            },
            "layers",
            {q}},
           {"codes without rows",
            [&](HostModel& a) {
              resize(a.at(named(q, ".qweight")), {8, 0});
            },
            "layers",
            {q}},
           {"codes of one dimension", [&](HostModel& a) { resize(a.at(named(q, ".qweight")), {512}); }, "layers", {q}},
           {"compressed weight_shape",
            [](HostModel& a) {
              const std::int64_t shape[2] = {std::int64_t{1} << 40, -3};
              std::memcpy(a.at(named(q, ".weight_shape")).data.data(), shape, sizeof(shape));
            },
            "layers",
            {q},
            compressed},
           {"a module that the model lacks",
            [](HostModel& a) {
              for (const char* suffix : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
                auto tensor = a.at(named(q, suffix));
                tensor.name = named("model.layers.7.self_attn.q_proj", suffix);
                a.tensors.push_back(tensor);
              }
            },
            "structure",
            {"layers.7"}},
           {"a bias that is not zero",
            [](HostModel& a) {
              HostTensor bias{
                  .name = named(q, ".bias"), .dtype = DType::bf16, .shape = {64}, .data = std::vector<std::byte>(128)};
              bias.set(3, 1.0f);
              a.tensors.push_back(bias);
            },
            "structure",
            {"bias"}}}) {
    expect_failure(row);
  }
}

TEST(Verify, WrongValuesFail) {
  const auto set_g_idx = [](HostModel& a, std::size_t k, std::uint32_t group) {
    words(a.at(named(q, ".g_idx")))[k] = group;
  };
  for (const auto& row : std::vector<Row>{
           {"infinite scale",
            [](HostModel& a) {
              const std::uint16_t infinity = 0x7c00;
              std::memcpy(a.at(named(q, ".scales")).data.data(), &infinity, 2);
            },
            "layers",
            {"finite"}},
           {"a group beyond the last", [&](HostModel& a) { set_g_idx(a, 5, 99); }, "layers", {"g_idx[5]"}, reordered},
           {"a group too large",
            [&](HostModel& a) { set_g_idx(a, 5, words(a.at(named(q, ".g_idx")))[6]); },
            "groups",
            {q, "columns"},
            reordered},
           {"one code",
            [](HostModel& a) { std::ranges::fill(words(a.at(named(q, ".qweight"))), 0x77777777u); },
            "values",
            {"same"}},
           {"orders that differ in a fused tensor",
            [&](HostModel& a) {
              auto g_idx = words(a.at(named(q, ".g_idx")));
              std::swap(g_idx[0], g_idx[1]);
            },
            "fused",
            {"g_idx"},
            reordered},
           {"v1 zeros that wrap",
            [](HostModel& a) {
              config_of(a)["checkpoint_format"] = "gptq";
              words(a.at(named(q, ".qzeros")))[0] = 0xffffffffu;
            },
            "zeros",
            {"2^4"},
            asymmetric}}) {
    expect_failure(row);
  }
}

TEST(Verify, SettingsThatDifferWithinAFusedTensorFail) {
  expect_failure({"k with other bits",
                  [](HostModel&) {},
                  "fused",
                  {"k_proj", "one tensor"},
                  {.other_suffix = "k_proj", .other = {.bits = 8, .group_size = 16}}});
  expect_failure({"v left float", [](HostModel&) {}, "fused", {"v_proj", "one tensor"}, {.float_suffix = "v_proj"}});
}

TEST(Verify, OtherWeightsThanTheSourcesFail) {
  for (const auto& row :
       std::vector<Row>{{"zeros off by one",
                         [](HostModel& a) {
                           config_of(a)["checkpoint_format"] = "gptq";
                           for (auto& tensor : a.tensors) {
                             if (tensor.name.ends_with(".qzeros")) {
                               for (auto& word : words(tensor)) {
                                 word &= 0x77777777u;  // none is 15, which the check of zeros would name
                               }
                             }
                           }
                         },
                         "weights",
                         {"off by one"},
                         asymmetric},
                        {"codes of another layer",
                         [](HostModel& a) {
                           a.at(named(q, ".qweight")).data = a.at("model.layers.1.self_attn.q_proj.qweight").data;
                         },
                         "weights",
                         {q, "source"}},
                        {"one damaged row",
                         [](HostModel& a) {
                           auto codes = words(a.at(named(q, ".qweight")));
                           for (std::size_t word = 0; word < codes.size(); word += 64) {
                             codes[word] = ~codes[word];
                           }
                         },
                         "weights",
                         {"1 of 64 output features"}},
                        {"a norm of other values",
                         [](HostModel& a) { a.at("model.norm.weight").set(0, 7.0f); },
                         "source",
                         {"model.norm.weight"}},
                        {"an embedding of another type",
                         [](HostModel& a) {
                           auto& table = a.at("model.embed_tokens.weight");
                           table = gptqd::test::to_dtype(table, DType::f16);
                           table.set(0, 100.0f);
                         },
                         "source",
                         {"embed_tokens"}}}) {
    Row with_source = row;
    with_source.against = true;
    expect_failure(with_source);
  }
}

TEST(Verify, ASourceWithNanFailsByName) {
  const TemporaryFolder folder;
  auto source = HostModel::read(tiny_source());
  source.at(named(q, ".weight")).set(5, NAN);
  source.write(folder / "source");
  tiny_artifact().write(folder / "artifact");

  const auto report =
      verify_artifact({.artifact = folder / "artifact", .against = folder / "source"}, [](const auto&) {});

  EXPECT_FALSE(report.passed());
  EXPECT_THAT(text_of(check_of(report, "weights")), HasSubstr("1 weights are NaN"));
}

TEST(Verify, HarmlessHabitsOfOtherToolsPass) {
  // Biases of zeros, inverse frequencies, a tied head written out, no g_idx, no modules list.
  const auto report = verify_changed([](HostModel& a) {
    for (const char* module : {q, "model.layers.1.mlp.down_proj"}) {
      a.tensors.push_back(
          {.name = named(module, ".bias"), .dtype = DType::f16, .shape = {64}, .data = std::vector<std::byte>(128)});
      a.remove(named(module, ".g_idx"));
    }
    a.tensors.push_back({.name = "model.layers.0.self_attn.rotary_emb.inv_freq",
                         .dtype = DType::f32,
                         .shape = {8},
                         .data = std::vector<std::byte>(32)});
    config_of(a).erase("modules_in_block_to_quantize");
    config_of(a).erase("checkpoint_format");
  });

  EXPECT_TRUE(report.passed()) << report.to_text();
}

TEST(Verify, NumbersInAnotherTypeAreAWarning) {
  const auto report = verify_changed([](HostModel& a) {
    for (const char* name : {"model.norm.weight", "model.embed_tokens.weight"}) {
      a.at(name) = gptqd::test::to_dtype(a.at(name), DType::f16);
    }
  });

  EXPECT_TRUE(report.passed()) << report.to_text();
  EXPECT_THAT(text_of(check_of(report, "source")), HasSubstr("2 tensors hold the source's numbers in another type"));
}

TEST(Verify, AFamilyThatWeDoNotKnowIsComparedWithItsSourceAlone) {
  const auto report = verify_changed([](HostModel& a) { a.config["model_type"] = "novel"; });

  EXPECT_TRUE(report.passed()) << report.to_text();
  EXPECT_EQ(check_of(report, "model").status, Check::Status::skipped);
  EXPECT_EQ(check_of(report, "kernels").status, Check::Status::skipped);
  EXPECT_TRUE(report.tensor_parallel.empty());
}

TEST(Verify, DisagreeingConfigurationFilesFail) {
  const TemporaryFolder folder;
  const auto artifact = tiny_artifact();
  artifact.write(folder / "artifact");
  auto other = artifact.config.at("quantization_config");
  other["bits"] = 8;
  std::ofstream(folder / "artifact/quantize_config.json") << other;

  EXPECT_EQ(check_of(verify(folder / "artifact"), "configuration").status, Check::Status::fail);
}

TEST(Verify, TheReportIsJson) {
  const auto report = verify_changed([](HostModel& a) { config_of(a)["checkpoint_format"] = "gptq_v2"; });

  const auto json = report.to_json();

  EXPECT_EQ(json.at("verdict"), "fail");
  EXPECT_EQ(json.at("format"), "gptq_v2");
  EXPECT_EQ(json.at("tensor_parallel").size(), 4u);
  const auto& zeros = json.at("checks").at(5);
  EXPECT_EQ(zeros.at("name"), "zeros");
  EXPECT_EQ(zeros.at("status"), "fail");
  EXPECT_EQ(zeros.at("findings").size(), 8u);  // 14 layers; the first few are told
  EXPECT_EQ(zeros.at("left_out"), 6);
}

}  // namespace
}  // namespace gptqd::pipeline
