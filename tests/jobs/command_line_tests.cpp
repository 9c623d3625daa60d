/// @file What the command line offers, and that it means the same wherever it comes from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;

TEST(CommandLine, HelpListsEveryOption) {
  const auto result = gptq_dist(1, Words{"quantize", "--help"});

  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, IsEmpty());
  for (const char* option : {"config",
                             "help",
                             "model",
                             "out",
                             "work",
                             "calibration",
                             "samples",
                             "seqlen",
                             "seed",
                             "report",
                             "max-shard-size",
                             "bits",
                             "group-size",
                             "sym",
                             "asym",
                             "act-order",
                             "clip",
                             "method",
                             "damping",
                             "true-sequential",
                             "no-true-sequential",
                             "propagate",
                             "reference",
                             "max-fallbacks",
                             "stages",
                             "hessian-leaves",
                             "panel-columns",
                             "row-tile",
                             "micro-batch-tokens",
                             "solver-precision",
                             "activations",
                             "allow-mixed",
                             "threads",
                             "device",
                             "stall-seconds"}) {
    EXPECT_THAT(result.out, HasSubstr(std::string("--") + option + " "));
  }
}

TEST(CommandLine, EveryCommandHasHelp) {
  for (const Words& words : {Words{}, Words{"--help"}, Words{"-h"}, Words{"eval", "--help"}, Words{"merge", "-h"}}) {
    const auto result = gptq_dist(1, words);

    EXPECT_EQ(result.code, 0);
    EXPECT_THAT(result.out, HasSubstr("gptq-dist"));
    EXPECT_THAT(result.err, IsEmpty());
  }
}

TEST(CommandLine, HelpAndVersionArePrintedOnceUnderALauncher) {
  const auto version = gptq_dist(3, Words{"--version"});
  const auto help = gptq_dist(2, Words{"--help"});

  EXPECT_EQ(version.code, 0) << version.err;
  EXPECT_THAT(version.out, MatchesRegex("gptq-dist [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  const auto first = help.out.find("Exit codes");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(help.out.find("Exit codes", first + 1), std::string::npos);
}

TEST(CommandLine, QuantizeIsTheDefaultCommand) {
  const TemporaryFolder folder;
  Words words{"quantize"};
  for (const auto& [name, value] : quick_run(folder / "named")) {
    words.insert(words.end(), {name, value});
  }

  expect_success(1, quick_run(folder / "default"));
  const auto named = gptq_dist(1, words);

  EXPECT_EQ(named.code, 0) << named.err;
  EXPECT_EQ(bytes_of_run(folder / "named"), bytes_of_run(folder / "default"));
}

TEST(CommandLine, AConfigFileGivesTheSameOptionsAndTheCommandLineWins) {
  const TemporaryFolder folder;
  const Options settings{{"--bits", "3"}, {"--act-order", "none"}, {"--group-size", "64"}, {"--sym", ""}};
  expect_success(1, quick_run(folder / "three", settings));
  auto four = settings;
  four["--bits"] = "4";
  expect_success(1, quick_run(folder / "four", four));
  std::string text = "# a comment\n";
  for (const auto& [name, value] : quick_run("unused", settings)) {
    if (name != "--out") {
      text += fmt::format("{} = {}\n", name.substr(2), value.empty() ? "true" : value);
    }
  }
  write_text(folder / "run.ini", text);

  expect_success(1, {{"--config", folder / "run.ini"}, {"--out", folder / "three-from-file"}});
  expect_success(2, {{"--config", folder / "run.ini"}, {"--out", folder / "four-from-file"}, {"--bits", "4"}});

  EXPECT_EQ(bytes_of_run(folder / "three-from-file"), bytes_of_run(folder / "three"));
  EXPECT_EQ(bytes_of_run(folder / "four-from-file"), bytes_of_run(folder / "four"));
  EXPECT_NE(bytes_of_run(folder / "four"), bytes_of_run(folder / "three"));
}

TEST(CommandLine, AConfigFileWithAnUnknownOptionIsRefused) {
  const TemporaryFolder folder;
  write_text(folder / "run.ini", "bitz = 3\n");

  const auto result = gptq_dist(1, Words{"--config", folder / "run.ini", "--model", demo_model()});

  EXPECT_EQ(result.code, 64);
  EXPECT_THAT(result.err, HasSubstr("bitz"));
}

TEST(CommandLine, AModelsNameIsEnough) {
  const TemporaryFolder folder;
  const CommandOptions there{.folder = folder.path(), .environment = {{"GPTQ_DIST_MODELS", source_path("jobs/demo")}}};

  const auto result = expect_success(1, {{"--model", "opt-7m"}, {"--samples", "4"}, {"--seqlen", "64"}}, there);

  EXPECT_TRUE(fs::exists(folder / "opt-7m-w4g128/model.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "opt-7m-w4g128.work/report.json"));
  const auto first = result.err.find("text that ships with the program");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(result.err.find("text that ships with the program", first + 1), std::string::npos);
  EXPECT_THAT(result.out, AllOf(HasSubstr("opt-7m-w4g128"), HasSubstr("4 bits"), HasSubstr("report.json")));
}

TEST(CommandLine, TheNameOfTheResultTellsBitsAndGroups) {
  const TemporaryFolder folder;
  const CommandOptions there{.folder = folder.path(), .environment = {}};
  const Options tiny{{"--samples", "2"},
                     {"--seqlen", "64"},
                     {"--calibration", calibration_tokens()},
                     {"--bits", "3"},
                     {"--group-size", "-1"}};
  auto with_slash = tiny;
  with_slash["--model"] = demo_model().string() + "/";

  expect_success(1, with_slash, there);

  EXPECT_TRUE(fs::exists(folder / "opt-7m-w3channel/model.safetensors"));
}

TEST(CommandLine, RoundToNearestNeedsNoCalibration) {
  const TemporaryFolder folder;

  const auto result = expect_success(2, {{"--model", demo_model()}, {"--out", folder / "out"}, {"--method", "rtn"}});

  EXPECT_THAT(result.err, Not(HasSubstr("ships with the program")));
  EXPECT_TRUE(report_of(folder / "out").at("loss_ratio").is_null());
}

TEST(CommandLine, TheReportIsWrittenWhereItIsAskedForAsWell) {
  const TemporaryFolder folder;

  expect_success(2, quick_run(folder / "out", {{"--report", folder / "mine.json"}, {"--stages", "2"}}));

  const auto report = nlohmann::json::parse(read_text(folder / "mine.json"));
  EXPECT_EQ(report, report_of(folder / "out"));
  EXPECT_EQ(report.at("ranks"), 2);
  EXPECT_EQ(report.at("stages"), 2);
  EXPECT_EQ(report.at("peak_bytes_per_rank").size(), 2u);
  EXPECT_EQ(report.at("blocks"), nlohmann::json({{"total", 6}, {"computed", 6}, {"found", 0}}));
  EXPECT_EQ(report.at("fallbacks"), 0);
  EXPECT_LT(report.at("loss_ratio").get<double>(), 1);
  // Forward 2·T·m·n, Hessian T·n², factor n³/3, solve m·n² of the six blocks.
  constexpr double t = 16 * 128;
  const double block = 2 * t * (4 * 256 * 256 + 2 * 256 * 1024) + t * (3 * 256.0 * 256 + 1024.0 * 1024) +
                       (3 * 256.0 * 256 * 256 + 1024.0 * 1024 * 1024) / 3 + (4 * 256.0 + 1024) * 256 * 256 +
                       256.0 * 1024 * 1024;
  EXPECT_NEAR(report.at("model_flops").get<double>(), 6 * block, 1e-4 * 6 * block);
  std::map<std::string, std::string> files;
  for (const auto& file : report.at("artifact").at("files")) {
    files[file.at("name")] = file.at("xxh3_128");
  }
  EXPECT_EQ(files, checksums(folder / "out"));
  ASSERT_EQ(report.at("layers").size(), 36u);
  for (const auto& layer : report.at("layers")) {
    EXPECT_EQ(layer.at("tokens"), 16 * 128);
    EXPECT_GT(layer.at("rtn_loss").get<double>(), 0);
    EXPECT_GE(layer.at("seconds").get<double>(), 0);
  }
}

TEST(CommandLine, ARunTakesTheMemoryThatItsFirstLineSaysWhereverActivationsLive) {
  const TemporaryFolder folder;
  std::vector<std::int64_t> peaks;
  for (const char* where : {"resident", "parked"}) {
    const auto out = folder / where;
    // Activations are most of it; micro-batches are small beside them.
    const auto result = expect_success(
        1, quick_run(out, {{"--activations", where}, {"--samples", "64"}, {"--micro-batch-tokens", "128"}}));

    const auto report = report_of(out);
    EXPECT_EQ(report.at("activations"), where);
    const auto planned = report.at("planned_bytes_per_rank").get<std::int64_t>();
    EXPECT_THAT(result.err, HasSubstr(fmt::format("about {:.2f} GB a rank, activations {}",
                                                  static_cast<double>(planned) / 1e9, where)));
    peaks.push_back(report.at("peak_bytes_per_rank").at(0).get<std::int64_t>());
    const auto measured = static_cast<double>(peaks.back());
    EXPECT_NEAR(static_cast<double>(planned), measured, 0.15 * measured) << where;
  }
  EXPECT_LT(peaks[1], peaks[0]);
  EXPECT_EQ(bytes_of_run(folder / "parked"), bytes_of_run(folder / "resident"));

  // It is no part of what a run is: another choice continues, or finds, the same.
  const auto again =
      expect_success(1, quick_run(folder / "resident",
                                  {{"--activations", "parked"}, {"--samples", "64"}, {"--micro-batch-tokens", "128"}}));
  EXPECT_THAT(again.out, HasSubstr("is complete already"));
}

TEST(CommandLine, ProgressNamesEveryBlockOnce) {
  const TemporaryFolder folder;

  const auto result = expect_success(2, quick_run(folder / "out"));

  for (int block = 1; block <= 6; ++block) {
    const auto text = fmt::format("block {} of 6: loss", block);
    const auto first = result.err.find(text);
    EXPECT_NE(first, std::string::npos) << block;
    EXPECT_EQ(result.err.find(text, first + 1), std::string::npos) << block;
  }
  EXPECT_THAT(result.err, Not(HasSubstr("gptq-dist:")));
}

TEST(CommandLine, TheInstalledProgramRunsWithTheTextThatShipsWithIt) {
  const TemporaryFolder folder;
  const auto installed =
      run_command({GPTQD_CMAKE, "--install", gptqd::test::binary_path(""), "--prefix", folder / "prefix"});
  ASSERT_EQ(installed.code, 0) << installed.err;

  const auto result = run_command({folder / "prefix/bin/gptq-dist", "--model", demo_model(), "--samples", "4",
                                   "--seqlen", "64", "--out", folder / "out"});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(fs::exists(folder / "out/model.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "prefix/share/gptq-dist/calibration.txt"));
}

}  // namespace
}  // namespace gptqd::jobs::test
