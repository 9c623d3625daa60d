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

INSTANTIATE_TEST_SUITE_P(Models, OnGpu, ::testing::Values("opt-7m", "bloom-7m", "llama-7m"), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace gptqd::jobs::test
