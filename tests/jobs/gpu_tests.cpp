/// @file Whole runs on a GPU against those on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/backend.hpp"
#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class OnGpu : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0 && std::getenv("GPTQD_REQUIRE_GPU") == nullptr) {
      GTEST_SKIP() << "no GPU on this machine";
    }
  }

  /// The defaults on all calibration tokens of the reference results.
  Options full_run(const std::string& device, const std::string& out) const {
    return {{"--model", demo_model(GetParam())},
            {"--calibration", calibration_tokens()},
            {"--device", device},
            {"--out", folder_ / out}};
  }

  const TemporaryFolder folder_;
};

/// Perplexity of the first 128 windows of eval.txt on the CPU: the files are compared, not what runs them.
double perplexity(const std::filesystem::path& model) {
  const TemporaryFolder folder;
  const auto result =
      gptq_dist(1, Words{"eval", "--model", model, "--device", "cpu", "--text", source_path("jobs/demo/eval.txt"),
                         "--seqlen", "512", "--windows", "128", "--json", folder / "eval.json"});
  EXPECT_EQ(result.code, 0) << result.err;
  return nlohmann::json::parse(read_text(folder / "eval.json")).at("perplexity").get<double>();
}

TEST_P(OnGpu, LossesAndPerplexityAreThoseOfTheCpu) {
  expect_success(1, full_run("cpu", "cpu"));
  expect_success(1, full_run("cuda", "cuda"));

  EXPECT_THAT(report_of(folder_ / "cuda").dump(), HasSubstr("\"cuda "));
  const double loss_ratio = report_of(folder_ / "cuda").at("loss_ratio").get<double>() /
                            report_of(folder_ / "cpu").at("loss_ratio").get<double>();
  EXPECT_NEAR(loss_ratio, 1, 0.02);
  EXPECT_NEAR(perplexity(folder_ / "cuda") / perplexity(folder_ / "cpu"), 1, 0.01);
}

TEST_P(OnGpu, KilledAndContinuedItHasTheSameBytes) {
  expect_success(1, full_run("cuda", "whole"));
  const auto out = folder_ / "killed";
  int kills = 0;
  for (const int block : {1, 3}) {
    Command run(command_line(1, full_run("cuda", "killed")));
    const auto sidecar = work_of(out) / fmt::format("shards/block_{:05}.json", block);
    ASSERT_TRUE(gptqd::test::becomes_true(60, [&] { return std::filesystem::exists(sidecar); })) << run.err();
    for (const pid_t process : run.processes()) {
      kills += ::kill(process, SIGKILL) == 0 ? 1 : 0;
    }
    run.wait(30);
  }

  expect_success(1, full_run("cuda", "killed"));

  EXPECT_GE(kills, 1) << "both runs were over before they could be killed";
  EXPECT_EQ(bytes_of_run(out), bytes_of_run(folder_ / "whole"));
  EXPECT_THAT(half_written(folder_.path()), IsEmpty());
}

TEST_P(OnGpu, ALostDeviceEndsTheRunWithItsNameAndTheNextRunCompletesIt) {
  expect_success(1, full_run("cuda", "whole"));
  const auto out = folder_ / "lost";
  const auto run = [&](const std::string& fault) {
    auto options = full_run("cuda", "lost");
    options["--stall-seconds"] = "5";
    Command job(command_line(1, options), {.folder = {}, .environment = {{"GPTQ_DIST_FAULT", fault}}});
    const auto code = job.wait(60);
    EXPECT_TRUE(gptqd::test::becomes_true(5, [&] { return job.processes().empty(); })) << fault;
    return CommandResult{.code = code.value_or(-1), .out = job.out(), .err = job.err()};
  };

  const auto lost = run("phase:lose-device:10");
  const auto hanging = run("phase:hang-device:10");

  EXPECT_EQ(lost.code, 70) << lost.err;
  EXPECT_THAT(lost.err, AllOf(HasSubstr("gptq-dist: rank 0: while working on block 2: CUDA device 0 ("),
                              HasSubstr("is lost to this process"), HasSubstr("run the same command again"),
                              HasSubstr("(block 2, ")));
  EXPECT_EQ(hanging.code, 70) << hanging.err;
  EXPECT_THAT(hanging.err, HasSubstr("gptq-dist: rank 0 has made no progress for 5 s (block "));
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_success(1, full_run("cuda", "lost"));
  EXPECT_GE(report_of(out).at("blocks").at("found"), 1);
  EXPECT_EQ(bytes_of_run(out), bytes_of_run(folder_ / "whole"));
  EXPECT_THAT(half_written(folder_.path()), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Models, OnGpu, ::testing::Values("opt-7m", "bloom-7m", "llama-7m"), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace gptqd::jobs::test
