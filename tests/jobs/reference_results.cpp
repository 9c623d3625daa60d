#include "tests/jobs/reference_results.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace gptqd::jobs::test {

namespace {

LayerLosses parse_layer(const std::string& line) {
  LayerLosses layer;
  std::istringstream(line) >> layer.module >> layer.rtn_loss >> layer.gptq_loss >> layer.weight_norm >> layer.trace >>
      layer.dead_columns;
  return layer;
}

Options options_of(const nlohmann::json& settings) {
  Options options{{"--reference", ""}, {"--panel-columns", "256"}};  // fc2 then has several panels
  options["--bits"] = std::to_string(settings.at("bits").get<int>());
  options["--group-size"] = std::to_string(settings.at("group_size").get<int>());
  options[settings.at("sym").get<bool>() ? "--sym" : "--asym"] = "";
  if (settings.at("act_order").get<bool>()) {
    options["--act-order"] = settings.at("static_groups").get<bool>() ? "static" : "dynamic";
  }
  if (!settings.at("true_sequential").get<bool>()) {
    options["--no-true-sequential"] = "";
  }
  return options;
}

const std::vector<std::string> models{"opt-7m", "bloom-7m", "llama-7m"};

nlohmann::json reference_file(const std::string& model) {
  return nlohmann::json::parse(read_text(source_path("tests/golden/gptq/" + model + ".json")));
}

/// Configurations that the files of all models have; opt-7m and llama-7m have one more each.
const std::vector<std::string> common_configurations{"w4-channel-asym",
                                                     "w4-channel-sym",
                                                     "w4-g128-sym",
                                                     "w4-g128-asym",
                                                     "w3-channel-asym",
                                                     "w3-channel-sym",
                                                     "w3-g128-sym",
                                                     "w3-g128-asym",
                                                     "w2-channel-asym",
                                                     "w2-channel-sym",
                                                     "w2-g128-sym",
                                                     "w2-g128-asym",
                                                     "w4-g32-sym",
                                                     "w4-g128-sym-actorder-static",
                                                     "w3-g128-sym-actorder-static"};

}  // namespace

std::string test_name(const ::testing::TestParamInfo<ReferenceCase>& info) {
  std::string name = info.param.model + "_" + info.param.configuration;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

void PrintTo(const ReferenceCase& which, std::ostream* out) { *out << which.model << " " << which.configuration; }

std::vector<ReferenceCase> other_reference_cases() {
  const auto chosen = chosen_reference_cases();
  std::vector<ReferenceCase> cases;
  for (const auto& model : models) {
    for (const auto& configuration : common_configurations) {
      const ReferenceCase which{.model = model, .configuration = configuration};
      if (std::find(chosen.begin(), chosen.end(), which) == chosen.end()) {
        cases.push_back(which);
      }
    }
  }
  return cases;
}

std::vector<ReferenceCase> chosen_reference_cases() {
  return {{.model = "opt-7m", .configuration = "w4-channel-asym-not-sequential"},
          {.model = "opt-7m", .configuration = "w3-channel-sym"},
          {.model = "opt-7m", .configuration = "w2-g128-sym"},
          {.model = "bloom-7m", .configuration = "w4-channel-asym"},
          {.model = "bloom-7m", .configuration = "w3-g128-asym"},
          {.model = "llama-7m", .configuration = "w4-g128-sym-actorder-static"},
          {.model = "llama-7m", .configuration = "w8-g128-sym"}};
}

ReferenceRun reference_run(const ReferenceCase& which) {
  const auto settings = reference_file(which.model).at("configs").at(which.configuration);
  ReferenceRun run{.model = demo_model(which.model),
                   .bits = settings.at("bits"),
                   .options = options_of(settings),
                   .layers = {},
                   .perplexity = settings.at("ppl").at("gptq_ppl_128")};
  for (const auto& line : settings.at("layers")) {
    run.layers.push_back(parse_layer(line));
  }
  return run;
}

std::map<std::string, LayerLosses> losses_of(const std::filesystem::path& out) {
  const auto report = report_of(out);
  std::map<std::string, LayerLosses> losses;
  for (const auto& layer : report.at("layers")) {
    const double norm = layer.at("weight_norm");
    const std::string module = layer.at("name");
    losses[module] = {.module = module,
                      .rtn_loss = layer.at("rtn_loss").get<double>() * norm,
                      .gptq_loss = layer.at("loss").get<double>() * norm,
                      .weight_norm = norm,
                      .trace = 0,
                      .dead_columns = layer.at("dead_columns")};
  }
  return losses;
}

void quantize_fully(const std::filesystem::path& model, const std::filesystem::path& out, const Options& settings) {
  Options options{{"--model", model}, {"--calibration", calibration_tokens()}, {"--out", out}};
  options.insert(settings.begin(), settings.end());
  expect_success(1, options);
}

nlohmann::json evaluate(const std::filesystem::path& model, int windows) {
  const TemporaryFolder folder;
  const auto result =
      gptq_dist(1, Words{"eval", "--model", model, "--text", source_path("jobs/demo/eval.txt"), "--seqlen", "512",
                         "--windows", std::to_string(windows), "--json", folder / "eval.json"});
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? nlohmann::json::parse(read_text(folder / "eval.json")) : nlohmann::json();
}

namespace {

TEST(ReferenceResults, EveryConfigurationOfTheFilesIsCompared) {
  auto cases = chosen_reference_cases();
  const auto others = other_reference_cases();
  cases.insert(cases.end(), others.begin(), others.end());
  for (const auto& model : models) {
    const auto file = reference_file(model);
    std::vector<std::string> in_file;
    for (const auto& [name, unused] : file.at("configs").items()) {
      in_file.push_back(name);
    }
    std::vector<std::string> compared;
    for (const auto& which : cases) {
      if (which.model == model) {
        compared.push_back(which.configuration);
      }
    }

    EXPECT_THAT(compared, ::testing::UnorderedElementsAreArray(in_file)) << model;
  }
}

}  // namespace

}  // namespace gptqd::jobs::test
